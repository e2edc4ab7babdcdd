"""The supervisor: opens the listeners, starts the other processes, and replaces one that dies. Uses no gevent."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from gateway.config.doubts import doubts
from gateway.config.schema import Config
from gateway.host.helpers import refuse_helpers
from gateway.host.privilege import is_privileged
from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.log import get_logger, setup_logging
from gateway.process.confine import hide
from gateway.process.lifeline import Ask, FromChild, Report
from gateway.supervisor.child import Child
from gateway.supervisor.children import Children
from gateway.supervisor.code import Code
from gateway.supervisor.crew import Crew
from gateway.supervisor.ending import FOREVER, Elder, Ending
from gateway.supervisor.heritage import Channel, Heritage, inherited
from gateway.supervisor.listeners import TIME_WAIT, Listeners, places
from gateway.supervisor.notify import notify
from gateway.supervisor.preflight import placed, refusals, surprises
from gateway.supervisor.questions import Questions
from gateway.supervisor.reload import Reload, reload_retired
from gateway.supervisor.run_dir import RunDir
from gateway.supervisor.shared_files import SharedFiles
from gateway.supervisor.state import FIRST, State, Step, after
from gateway.supervisor.takeover import HandOver, TakeOver
from gateway.supervisor.upkeep import Upkeep

log = get_logger()

_LEAST_DESCRIPTORS, _WORKER_DESCRIPTORS = 100, 8  # of the supervisor: besides, and for each worker
START_DEADLINE = 90.0  # seconds until all must be ready; a small router that has just booted is slow


def run(load: Callable[[], Config]) -> int:
    """Run the gateway until SIGTERM or SIGINT, and return the exit code. `load` reads the configuration, now and at
    each reload. Raises AlgateError if the gateway cannot start."""
    heritage = inherited()
    channel = Channel(socket.socket(fileno=heritage.channel)) if heritage else None
    try:
        return _run(load, heritage, channel)
    except AlgateError as error:
        if channel is not None:
            channel.say(f"failed: {error}")
        raise


def _run(load: Callable[[], Config], heritage: Heritage | None, channel: Channel | None) -> int:
    hide()
    config = load()
    setup_logging("supervisor", config.log.settings)
    if heritage is not None:
        _check_heritage(heritage, config)
    for message in refusals(config):
        raise ConfigError(placed(config, message, "configuration"))
    for message in (*doubts(config), *surprises(config)):
        log.warning("config.doubt", reason=placed(config, message, "configuration"))
    if config.broker_wanted and not is_privileged():
        raise AlgateError("kernel pinholes and redirected connections need root (or set pinhole.backend = 'userspace')")
    if config.broker_wanted:
        refuse_helpers(config)
    _raise_descriptor_limit(config.worker_count)
    run_dir = RunDir(config.process.run_dir, heritage, config.instance)
    gateway = None
    try:
        gateway = _Supervisor(load, config, run_dir, heritage, channel)
        return gateway.run()
    finally:
        in_charge = gateway.in_charge if gateway is not None else heritage is None
        if in_charge:
            run_dir.remove()
        else:
            run_dir.leave([f"worker-{slot}" for slot in gateway.slots] if gateway else [])


def _check_heritage(heritage: Heritage, config: Config) -> None:
    """Raise AlgateError if this configuration cannot take over from the running gateway."""
    if heritage.run_dir != config.process.run_dir:
        raise AlgateError("process.run_dir: has changed, and that takes a restart")
    if heritage.broker_ends and not config.broker_wanted:
        raise AlgateError("pinhole.backend, network.inside_interfaces: to do without the broker takes a restart")


class _Supervisor:
    def __init__(
        self,
        load: Callable[[], Config],
        config: Config,
        run_dir: RunDir,
        heritage: Heritage | None,
        elder: Channel | None,
    ) -> None:
        self._load = load
        self._run_dir = run_dir
        self._state = State.STARTING if heritage is None else State.SUCCEEDING
        self._successor: Channel | None = None
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector, self._on_message)
        admin = run_dir.adopt("supervisor", heritage.admins["supervisor"]) if heritage else run_dir.listen("supervisor")
        self._code = Code(run_dir.path)
        self._listeners = Listeners(config.worker_count, heritage.sockets() if heritage else ())
        self._listeners.open(places(config), patience=TIME_WAIT)
        self._listeners.leave_out(self._listeners.places() - places(config).keys())
        self._crew = Crew(config, run_dir, self._listeners, SharedFiles(config), self._code, heritage)
        self._elder = Elder(elder, self._selector, self._on_elder_ended)
        self._ending = Ending(self._crew, self._children, self._listeners, self._elder, self._poll)
        self._take_over: TakeOver | None = None
        if heritage is not None and elder is not None:
            self._take_over = TakeOver(heritage, elder, self._crew, self._children, self._listeners, self._poll)
        self._reload: Reload | None = None
        self._upkeep = Upkeep(self._crew, self._children, self._listeners)
        self._questions = Questions(admin, run_dir, self._crew, self._upkeep, lambda: self._state)

    @property
    def in_charge(self) -> bool:
        """Whether what outlives a version is ours: listeners, table, run directory."""
        return self._state.in_charge

    @property
    def slots(self) -> list[int]:
        """The slots of our workers."""
        return self._crew.slots

    @property
    def _config(self) -> Config:
        return self._crew.config

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        signals, waker = self._catch_signals()
        self._selector.register(signals, selectors.EVENT_READ, lambda: self._on_signals(signals))
        self._upkeep.register(self._selector)
        by = {"reload": self._do_reload, "upgrade": self._do_upgrade, "drain": self._do_drain}
        try:
            self._start()
            while self._state is State.RUNNING:
                self._poll(None)
                while self._state is State.RUNNING and self._questions.requests.carry_out(by):
                    pass
            return 0
        finally:
            self._end()
            closing = (self._listeners, self._crew, self._questions, self._upkeep, signals, waker, self._selector)
            for closable in closing:
                closable.close()
            self._code.close()
            self._crew.files.close()

    def _start(self) -> None:
        """Start all children, and report that the gateway is ready. Raises AlgateError. SIGTERM is obeyed meanwhile."""
        first = list(self._crew) if self._take_over is None else self._crew.first
        if self._take_over is None:
            self._listeners.listen()
        for child in first:
            self._children.start(child)
        give_up = time.monotonic() + START_DEADLINE
        while self._state in FIRST and not all(child.ready for child in first):
            if time.monotonic() > give_up:
                missing = ", ".join(child.name for child in first if not child.ready)
                raise AlgateError(f"not ready after {START_DEADLINE:g} s: {missing}")
            self._poll(give_up)
        if self._state not in FIRST:
            return
        if self._take_over is not None:
            self._take_over.run()
            self._step(Step.TOOK_OVER)
            self._run_dir.claim()
            self._questions.requests.remember(self._take_over.ticket, {"pid": os.getpid()})
            self._take_over.channel.say("ready")
            if self._state is not State.STARTING:
                return
        self._selector.register(self._questions.admin, selectors.EVENT_READ, self._questions.accept)
        self._children.starting = False
        self._step(Step.READY)
        tls = {"tls": ",".join(self._config.socks.tls.listen)} if self._config.socks.tls.listen else {}
        log.info("ready", socks=",".join(self._config.socks.listen), **tls, workers=len(self._crew.workers))
        notify("READY=1")

    def _end(self) -> None:
        """The loop is over, or the start has failed."""
        self._step(Step.END)
        if self._state is State.RETIRED and self._successor is not None:
            seconds = self._config.process.retire_timeout
            self._ending.retire(self._successor, self._selector, seconds, self._reload_retired)
        elif self._state is State.ABANDONING:
            self._ending.abandon()
        else:
            notify("STOPPING=1")
            self._ending.drain(FOREVER if self._state is State.EMPTYING else self._config.process.drain_timeout)

    def _step(self, step: Step) -> None:
        self._state = after(self._state, step)

    def _poll(self, until: float | None) -> None:
        """Wait for an event, until this time at the latest, and do what is due."""
        due = [*self._children.due(), *self._upkeep.due()]
        due += [until] if until is not None else []
        for key, _ in self._selector.select(max(0.0, min(due) - time.monotonic())):
            key.data()
        self._upkeep.tick(running=self._state is State.RUNNING, reloading=self._reload is not None)

    def _on_message(self, child: Child, message: FromChild) -> None:
        if isinstance(message, Ask):
            self._questions.serve(child, message)
        elif self._reload is not None:
            self._reload.heard(child, message)
        elif self._take_over is not None:
            self._take_over.heard(child, message)

    # --- what the operator asks for ---------------------------------------------------------------------------------

    def _do_reload(self, _ticket: str) -> dict[str, Any]:
        """Read the configuration again and use it. Returns what has changed. Raises AlgateError: the old one stays in
        use."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = self._load()
            self._reload = Reload(new, self._listeners, self._crew, self._children, lambda until: self._poll(until))
            done = self._reload.run()
        except (AlgateError, OSError) as error:
            log.error("reload.failed", reason=str(error), hint="the configuration before stays in use")
            raise
        finally:
            self._reload = None
            notify("READY=1")
        if done["rules"] == "changed":
            self._upkeep.rules.applied()
        log.info("reload", **done)
        self._elder.say("reload")
        return done

    def _do_drain(self, _ticket: str) -> dict[str, Any]:
        """Stop accepting, and end when all flows have ended."""
        self._step(Step.DRAIN)
        return {"state": "draining"}

    def _do_upgrade(self, ticket: str) -> dict[str, Any]:
        """Let a new version take over. Raises AlgateError if it could not, and all is as before."""
        hand_over = HandOver(self._selector, self._run_dir, self._crew, self._children, self._poll)
        try:
            self._successor, pid = hand_over.run(ticket, self._questions.admin, self._questions.accept)
        except AlgateError as error:
            log.error("upgrade.failed", reason=str(error), hint="the version before goes on")
            raise
        notify(f"MAINPID={pid}")
        if self._state is not State.RUNNING:  # SIGTERM came meanwhile: it concerns the supervisor in charge
            os.kill(pid, signal.SIGTERM)
        self._step(Step.HANDED_OVER)
        return {"pid": pid}

    def _on_elder_ended(self) -> None:
        if self._state.in_charge:
            self._crew.forget_old()
            log.info("upgrade.complete")

    def _reload_retired(self) -> None:
        try:
            reload_retired(self._load(), self._listeners, self._crew)
        except AlgateError as error:  # as of keys that only the new version knows
            log.error("reload.failed", reason=str(error), hint="flows of this version go on by the old rules")
        self._elder.say("reload")

    # --- signals and the command line -------------------------------------------------------------------------------

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        """Return a socket that is readable when a signal has come, with its number as a byte, and its other end."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)
        return ours, theirs

    def _on_signals(self, signals: socket.socket) -> None:
        for number in signals.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._on_stop_signal()
            elif number == signal.SIGHUP:
                self._questions.requests.add_by_signal("reload")
            elif number == signal.SIGUSR2:
                self._questions.requests.add_by_signal("upgrade")
            elif number == signal.SIGUSR1:
                log.info("status", **self._questions.status()[0])
                self._children.tell_all(Report())

    def _on_stop_signal(self) -> None:
        if self._state is State.DRAINING:  # asked twice: at once
            self._ending.cut()
        elif self._state in (State.RETIRED, State.EMPTYING):
            self._ending.hurry()
        self._step(Step.STOP)


def _raise_descriptor_limit(workers: int) -> None:
    """Raise the limit of descriptors as far as allowed. The children inherit it. Raises AlgateError where it is too low
    to start them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = _LEAST_DESCRIPTORS + workers * _WORKER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < least:
        raise AlgateError(
            f"{hard} descriptors for each process are too few to start: {least} at the least, and two more for each "
            "flow of a worker (ulimit -n, or LimitNOFILE= of the service)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

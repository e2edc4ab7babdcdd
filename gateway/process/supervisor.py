"""The supervisor: opens the listeners, starts the other processes, and replaces one that dies. No gevent here."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from gateway.broker import rules
from gateway.broker.queue import queue_samples
from gateway.config import Config
from gateway.doctor import refuse_helpers
from gateway.errors import AlgateError
from gateway.observe.admin_wire import answer
from gateway.observe.counters import recent_rows
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import Sample, metrics_row
from gateway.privilege import is_privileged
from gateway.process.child import Child
from gateway.process.children import KILL_MARGIN, Children
from gateway.process.code import Code
from gateway.process.crew import Crew
from gateway.process.desk import Desk
from gateway.process.lifeline import Ask, File, FromChild, Report
from gateway.process.listeners import Listeners, places
from gateway.process.notify import Watchdog, notify
from gateway.process.reload import Reload
from gateway.process.run_dir import RunDir
from gateway.process.shared_files import CHECK_INTERVAL, SharedFiles
from gateway.process.wishes import Wishes

log = get_logger()

START_DEADLINE = 90.0  # seconds until all must be ready; a small router that has just booted is slow
FOREVER = 1e9  # seconds
STOP_LINGER = 0.1  # seconds in which those who connect at the very end are still taken in


def run(load: Callable[[], Config]) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code. `load` reads the configuration, now and whenever
    it is to be used anew. Raises AlgateError if the gateway cannot start."""
    config = load()
    setup_logging("supervisor", config.log)
    if config.broker_wanted and not is_privileged():
        raise AlgateError("kernel pinholes and redirected connections need root (or set pinhole.backend = 'userspace')")
    if config.broker_wanted:
        refuse_helpers(config)
    _raise_descriptor_limit()
    run_dir = RunDir(config.process.run_dir)
    try:
        return _Supervisor(load, config, run_dir).run()
    finally:
        run_dir.remove()


class _Supervisor:
    def __init__(self, load: Callable[[], Config], config: Config, run_dir: RunDir) -> None:
        self._load = load
        self._next_look = time.monotonic() + CHECK_INTERVAL
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector, self._on_message)
        self._state = "starting"
        self._patience: float | None = None  # seconds that flows get in the end; None: as configured
        self._admin = run_dir.listen("supervisor")
        self._code = Code(run_dir.path)
        self._listeners = Listeners(config.worker_count)
        self._listeners.open(places(config))
        self._crew = Crew(config, run_dir, self._listeners, SharedFiles(config), self._code)
        self._watchdog = Watchdog()
        self._wishes = Wishes()
        self._reload: Reload | None = None
        self._verbs = {"reload": lambda: self._wishes.add("reload"), "drain": lambda: self._wishes.add("drain")}
        self._verbs |= {"status": self._status, "metrics": self._metrics, "events": recent_rows}
        self._desk = Desk(run_dir, self._verbs)

    @property
    def _config(self) -> Config:
        return self._crew.config

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        signals, waker = self._catch_signals()
        self._selector.register(signals, selectors.EVENT_READ, lambda: self._on_signals(signals))
        self._admin.setblocking(False)
        self._selector.register(self._admin, selectors.EVENT_READ, self._on_admin)
        try:
            for child in self._crew:
                self._children.start(child)
            give_up = time.monotonic() + START_DEADLINE
            while self._state in ("starting", "running"):
                self._turn(give_up if self._state == "starting" else None)
                if self._state == "starting" and time.monotonic() > give_up:
                    missing = ", ".join(child.name for child in self._crew if not child.ready)
                    raise AlgateError(f"not ready after {START_DEADLINE:g} s: {missing}")
                if self._state == "running":
                    self._wishes.grant({"reload": self._do_reload, "drain": self._do_drain})
            return 0
        finally:
            self._stop_all()
            for closable in (self._listeners, self._crew, self._admin, signals, waker, self._selector):
                closable.close()
            self._code.close()
            self._crew.files.close()

    def _turn(self, until: float | None) -> None:
        """Wait for something to happen, at the most until then, and do what is due."""
        due = [*self._children.due(), self._watchdog.due, *([until] if until is not None else [])]
        if self._crew.files:
            due.append(self._next_look)
        for key, _ in self._selector.select(max(0.0, min(due) - time.monotonic())):
            key.data()
        now = time.monotonic()
        if self._crew.files and now >= self._next_look:
            self._next_look = now + CHECK_INTERVAL
            for name, fd in self._crew.files.refresh().items():
                for worker in self._crew.workers:
                    worker.tell(File(name), [fd])
        self._children.tick(now)
        self._watchdog.tick(now, self._children.answering)

    def _on_message(self, child: Child, message: FromChild) -> None:
        if isinstance(message, Ask):
            self._desk.serve(child, message)
        elif self._reload is not None:
            self._reload.heard(child, message)
        elif self._state == "starting" and all(child.ready for child in self._crew):
            self._state = "running"
            self._children.starting = False
            log.info("ready", socks=",".join(self._config.socks.listen), workers=len(self._crew.workers))
            notify("READY=1")

    # --- what is wished for -----------------------------------------------------------------------------------------

    def _do_reload(self) -> dict[str, Any]:
        """Use the configuration as it is written now; what has changed. AlgateError: the old one stays."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = self._load()
            self._reload = Reload(new, self._listeners, self._crew, self._children, lambda until: self._turn(until))
            done = self._reload.run()
        except AlgateError as error:
            log.error("reload.failed", reason=str(error), hint="the configuration before stays in use")
            raise
        finally:
            self._reload = None
            notify("READY=1")
        log.info("reload", **done)
        return done

    def _do_drain(self) -> dict[str, Any]:
        """Accept no more, and end when all flows have."""
        rules.stop_redirecting(self._config)  # new connections of unconfigured clients go straight
        self._patience = FOREVER
        self._state = "stopping"
        return {"state": "draining"}

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Drain the workers, then end the broker, which takes its rules away."""
        self._state = "draining"
        notify("STOPPING=1")
        patience = self._config.process.drain_timeout if self._patience is None else self._patience
        log.info("drain", deadline=patience)
        self._listeners.refuse(self._listeners.places())
        self._wait(STOP_LINGER)
        self._listeners.discard(self._listeners.places())
        last = [child for child in (self._crew.broker, self._crew.console) if child]  # it shows the draining
        self._children.end(self._crew.workers, patience + KILL_MARGIN, self._turn, patience)
        self._children.end([self._crew.packets] if self._crew.packets else [], KILL_MARGIN, self._turn)
        self._children.end(last, KILL_MARGIN, self._turn)
        log.info("stopped")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._turn(until)

    # --- signals and the command line -------------------------------------------------------------------------------

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        """A socket that is readable when a signal has come, with its number as a byte; and its other end."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        return ours, theirs

    def _on_signals(self, signals: socket.socket) -> None:
        for number in signals.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                if self._state == "draining":  # asked twice: at once
                    log.warning("drain.cut")
                    for child in self._crew.workers:
                        child.signal(signal.SIGKILL)
                elif self._state == "starting" or self._state == "running":
                    self._state = "stopping"
            elif number == signal.SIGHUP:
                self._wishes.add("reload")
            elif number == signal.SIGUSR1:
                log.info("status", **self._status()[0])
                self._children.tell_all(Report())

    def _on_admin(self) -> None:
        try:
            connection, _ = self._admin.accept()
        except OSError:
            return
        answer(connection, self._verbs, {"outcome": self._wishes.outcome})

    def _status(self) -> list[dict[str, Any]]:
        row = {"process": "supervisor", "pid": os.getpid(), "state": self._state}
        row["children"] = {child.name: {"pid": child.pid, "restarts": child.restarts} for child in self._crew}
        return [row]

    def _metrics(self) -> list[dict[str, Any]]:
        restarts: list[Sample] = [
            (("algate_process_restarts_total", child.name), child.restarts) for child in self._crew
        ]
        queue = queue_samples(self._config.queue) if self._config.packets_wanted else []
        return [metrics_row("supervisor", [*restarts, *queue])]


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have; the children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

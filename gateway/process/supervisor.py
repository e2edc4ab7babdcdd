"""The supervisor: opens the listeners, starts the other processes, and replaces one that dies. No gevent here."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from gateway.config import Config
from gateway.doctor import refuse_helpers
from gateway.errors import AlgateError
from gateway.observe.admin_wire import answer
from gateway.observe.log import get_logger, setup_logging
from gateway.process.boot import Boot
from gateway.process.child import Child
from gateway.process.code import Code
from gateway.process.listeners import listen_socks, listen_transparent
from gateway.process.run_dir import RunDir
from gateway.process.shared_files import CHECK_INTERVAL, SharedFiles

log = get_logger()

START_DEADLINE = 90.0  # seconds until all must be ready; a small router that has just booted is slow
KILL_MARGIN = 5.0  # seconds beyond the drain deadline until a worker is killed
STABLE_AGE = 5.0  # seconds; a child that lived longer is replaced without a pause
LONGEST_PAUSE = 5.0  # seconds


def run(config: Config) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code. Raises AlgateError if it cannot start."""
    setup_logging("supervisor", config.log)
    if config.broker_wanted and os.geteuid() != 0:
        raise AlgateError("kernel pinholes and redirected connections need root (or set pinhole.backend = 'userspace')")
    if config.broker_wanted:
        refuse_helpers(config)
    _raise_descriptor_limit()
    run_dir = RunDir(config.process.run_dir)
    try:
        return _Supervisor(config, run_dir).run()
    finally:
        run_dir.remove()


@dataclass(slots=True)
class _Restart:
    """A child that is to be started again at a time (monotonic seconds)."""

    child: Child
    at: float


class _Supervisor:
    def __init__(self, config: Config, run_dir: RunDir) -> None:
        self._config = config
        self._files = SharedFiles(config)
        self._next_look = time.monotonic() + CHECK_INTERVAL
        self._selector = selectors.DefaultSelector()
        self._restarts: list[_Restart] = []
        self._state = "starting"
        self._exit_code = 0
        self._admin = run_dir.listen("supervisor")
        self._code = Code(run_dir.path)
        self._sockets: list[socket.socket] = [self._admin]
        self._listeners: list[socket.socket] = []
        self._broker: Child | None = None
        broker_ends: list[int] = []
        self._workers = [self._worker(slot, run_dir, broker_ends) for slot in range(config.worker_count)]
        self._packets = self._make_packets(run_dir, broker_ends) if config.packets_wanted else None
        if config.broker_wanted:
            self._broker = self._make_broker(run_dir, broker_ends)

    @property
    def _children(self) -> list[Child]:
        return [child for child in (self._broker, self._packets) if child] + self._workers

    def _worker(self, slot: int, run_dir: RunDir, broker_ends: list[int]) -> Child:
        name = f"worker-{slot}"
        socks, transparent = listen_socks(self._config), listen_transparent(self._config)
        admin = run_dir.listen(name)
        self._sockets.append(admin)
        self._listeners += [*socks, *transparent]
        broker_fd = self._broker_pair(broker_ends) if self._config.broker_wanted else None

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="worker",
                slot=slot,
                config=self._config,
                lifeline=lifeline,
                admin=admin.fileno(),
                broker=broker_fd,
                socks=[s.fileno() for s in socks],
                transparent=[s.fileno() for s in transparent],
                files=self._files.fds(),
            )

        return Child(name, "gateway.process.worker", self._config.process.user, None, self._code, boot)

    def _broker_pair(self, broker_ends: list[int]) -> int:
        """One more slot of the broker; its other end. Both stay open: who replaces a dead one takes up its pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [ours, theirs]
        broker_ends.append(ours.fileno())
        return theirs.fileno()

    def _make_packets(self, run_dir: RunDir, broker_ends: list[int]) -> Child:
        slot = len(broker_ends)
        admin = run_dir.listen("packets")
        self._sockets.append(admin)
        broker_fd = self._broker_pair(broker_ends)

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="packets",
                slot=slot,
                config=self._config,
                lifeline=lifeline,
                admin=admin.fileno(),
                broker=broker_fd,
            )

        # The queue is netfilter's, so reading it needs the capability; nothing else of the process does.
        return Child(
            "packets", "gateway.process.packets", self._config.process.broker_user, "net_admin", self._code, boot
        )

    def _make_broker(self, run_dir: RunDir, broker_ends: list[int]) -> Child:
        admin = run_dir.listen("broker")
        self._sockets.append(admin)

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="broker",
                slot=0,
                config=self._config,
                lifeline=lifeline,
                admin=admin.fileno(),
                workers=broker_ends,
            )

        return Child(
            "broker", "gateway.process.broker", self._config.process.broker_user, "net_admin", self._code, boot
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        signals = self._catch_signals()
        self._selector.register(signals, selectors.EVENT_READ, lambda: self._on_signals(signals))
        self._admin.setblocking(False)
        self._selector.register(self._admin, selectors.EVENT_READ, self._on_admin)
        try:
            for child in self._children:
                self._start(child)
            give_up = time.monotonic() + START_DEADLINE
            while self._state in ("starting", "running"):
                self._turn(give_up if self._state == "starting" else None)
                if self._state == "starting" and time.monotonic() > give_up:
                    missing = ", ".join(child.name for child in self._children if not child.ready)
                    raise AlgateError(f"not ready after {START_DEADLINE:g} s: {missing}")
            return self._exit_code
        finally:
            self._stop_all()
            for sock in (*self._listeners, *self._sockets):
                sock.close()
            self._selector.close()
            self._code.close()
            self._files.close()

    def _turn(self, until: float | None) -> None:
        """Wait for something to happen, at the most until then, and do what is due."""
        due = [restart.at for restart in self._restarts] + ([until] if until is not None else [])
        if self._files:
            due.append(self._next_look)
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            key.data()
        now = time.monotonic()
        if self._files and now >= self._next_look:
            self._next_look = now + CHECK_INTERVAL
            for name, fd in self._files.refresh().items():
                for worker in self._workers:
                    worker.hand_over(name, fd)
        for restart in [r for r in self._restarts if r.at <= now]:
            self._restarts.remove(restart)
            if self._state in ("starting", "running"):
                self._start(restart.child)

    def _start(self, child: Child) -> None:
        child.start()
        assert child.lifeline is not None
        self._selector.register(child.lifeline, selectors.EVENT_READ, lambda: self._on_lifeline(child))
        log.info("process.start", child=child.name, pid=child.pid)

    def _on_lifeline(self, child: Child) -> None:
        was_ready = child.ready
        if child.read_lifeline():
            if child.ready and not was_ready:
                self._on_ready()
            return
        pid, age = child.pid, child.age
        assert child.lifeline is not None
        self._selector.unregister(child.lifeline)
        code = child.reap()
        if self._state == "draining":
            log.info("process.end", child=child.name, pid=pid, code=code)
            return
        log.error("process.died", child=child.name, pid=pid, code=code, age=round(age, 3))
        if self._state == "starting" and not was_ready:
            raise AlgateError(f"{child.name} ended with code {code} before it was ready (its reason stands above)")
        child.restarts += 1
        pause = 0.0 if age > STABLE_AGE else min(LONGEST_PAUSE, 0.05 * 2 ** min(child.restarts - 1, 10))
        self._restarts.append(_Restart(child, time.monotonic() + pause))

    def _on_ready(self) -> None:
        if self._state == "starting" and all(child.ready for child in self._children):
            self._state = "running"
            log.info("ready", socks=",".join(self._config.socks.listen), workers=len(self._workers))
            _notify("READY=1")

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Drain the workers, then end the broker, which takes its rules away."""
        self._state = "draining"
        self._restarts.clear()
        _notify("STOPPING=1")
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # for every process that holds it: refused from now on
        log.info("drain", deadline=self._config.process.drain_timeout)
        ending = [child for child in self._children if child is not self._broker]
        self._end(ending, self._config.process.drain_timeout + KILL_MARGIN)
        if self._broker:
            self._end([self._broker], KILL_MARGIN)
        log.info("stopped")

    def _end(self, children: list[Child], seconds: float) -> None:
        for child in children:
            child.signal(signal.SIGTERM)
        until = time.monotonic() + seconds
        while any(child.lifeline for child in children):
            if time.monotonic() >= until:
                for child in (c for c in children if c.lifeline):
                    log.error("process.killed", child=child.name, pid=child.pid)
                    child.signal(signal.SIGKILL)
                until += KILL_MARGIN
            self._turn(until)

    # --- signals and the command line -------------------------------------------------------------------------------

    def _catch_signals(self) -> socket.socket:
        """A socket that is readable when a signal has come, with its number as a byte."""
        ours, theirs = socket.socketpair()
        self._sockets += [ours, theirs]
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        return ours

    def _on_signals(self, signals: socket.socket) -> None:
        for number in signals.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                if self._state == "draining":  # asked twice: at once
                    log.warning("drain.cut")
                    for child in self._workers:
                        child.signal(signal.SIGKILL)
                elif self._state == "starting" or self._state == "running":
                    self._state = "stopping"
            elif number == signal.SIGHUP:
                log.warning("reload.unsupported", hint="restart to use a changed configuration")

    def _on_admin(self) -> None:
        try:
            connection, _ = self._admin.accept()
        except OSError:
            return
        answer(connection, {"status": self._status})

    def _status(self) -> list[dict[str, Any]]:
        row = {"process": "supervisor", "pid": os.getpid(), "state": self._state}
        row["children"] = {child.name: {"pid": child.pid, "restarts": child.restarts} for child in self._children}
        return [row]


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have; the children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _notify(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("notify.failed", reason=error.strerror)

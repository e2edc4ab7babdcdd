"""The supervisor: opens the listeners, starts the other processes, and replaces one that dies. No gevent here."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import time
from typing import Any

from gateway.config import Config
from gateway.doctor import refuse_helpers
from gateway.errors import AlgateError
from gateway.observe.admin_wire import answer
from gateway.observe.log import get_logger, setup_logging
from gateway.process.child import Child
from gateway.process.children import KILL_MARGIN, Children
from gateway.process.code import Code
from gateway.process.crew import Crew
from gateway.process.lifeline import File, FromChild
from gateway.process.listeners import Listeners, places
from gateway.process.notify import notify
from gateway.process.run_dir import RunDir
from gateway.process.shared_files import CHECK_INTERVAL, SharedFiles

log = get_logger()

START_DEADLINE = 90.0  # seconds until all must be ready; a small router that has just booted is slow


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


class _Supervisor:
    def __init__(self, config: Config, run_dir: RunDir) -> None:
        self._config = config
        self._files = SharedFiles(config)
        self._next_look = time.monotonic() + CHECK_INTERVAL
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector, self._on_message)
        self._state = "starting"
        self._admin = run_dir.listen("supervisor")
        self._code = Code(run_dir.path)
        self._listeners = Listeners(config.worker_count)
        self._listeners.open(places(config))
        self._crew = Crew(config, run_dir, self._listeners, self._files, self._code)

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
            return 0
        finally:
            self._stop_all()
            for closable in (self._listeners, self._crew, self._admin, signals, waker, self._selector):
                closable.close()
            self._code.close()
            self._files.close()

    def _turn(self, until: float | None) -> None:
        """Wait for something to happen, at the most until then, and do what is due."""
        due = self._children.due() + ([until] if until is not None else [])
        if self._files:
            due.append(self._next_look)
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            key.data()
        now = time.monotonic()
        if self._files and now >= self._next_look:
            self._next_look = now + CHECK_INTERVAL
            for name, fd in self._files.refresh().items():
                for worker in self._crew.workers:
                    worker.tell(File(name), [fd])
        self._children.tick(now)

    def _on_message(self, _child: Child, _message: FromChild) -> None:
        if self._state == "starting" and all(child.ready for child in self._crew):
            self._state = "running"
            self._children.starting = False
            log.info("ready", socks=",".join(self._config.socks.listen), workers=len(self._crew.workers))
            notify("READY=1")

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Drain the workers, then end the broker, which takes its rules away."""
        self._state = "draining"
        notify("STOPPING=1")
        self._listeners.shut_down()
        log.info("drain", deadline=self._config.process.drain_timeout)
        ending = [child for child in self._crew if child is not self._crew.broker]
        self._children.end(ending, self._config.process.drain_timeout + KILL_MARGIN, self._turn)
        if self._crew.broker:
            self._children.end([self._crew.broker], KILL_MARGIN, self._turn)
        log.info("stopped")

    # --- signals and the command line -------------------------------------------------------------------------------

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        """A socket that is readable when a signal has come, with its number as a byte; and its other end."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
                log.warning("reload.unsupported", hint="restart to use a changed configuration")

    def _on_admin(self) -> None:
        try:
            connection, _ = self._admin.accept()
        except OSError:
            return
        answer(connection, {"status": self._status})

    def _status(self) -> list[dict[str, Any]]:
        row = {"process": "supervisor", "pid": os.getpid(), "state": self._state}
        row["children"] = {child.name: {"pid": child.pid, "restarts": child.restarts} for child in self._crew}
        return [row]


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have; the children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

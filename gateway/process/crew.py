"""Which children a configuration needs, and what each of them is started with."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator

from gateway.config import Config
from gateway.observe.log import get_logger
from gateway.process.boot import Boot
from gateway.process.child import Child
from gateway.process.children import KILL_MARGIN, Children
from gateway.process.code import Code
from gateway.process.listeners import Listeners, listen_console
from gateway.process.run_dir import RunDir
from gateway.process.shared_files import SharedFiles

log = get_logger()


class Crew:
    """The children of one instance, and the sockets that they find again when they are replaced."""

    def __init__(self, config: Config, run_dir: RunDir, listeners: Listeners, files: SharedFiles, code: Code) -> None:
        self.config = config
        self.files = files
        self._run_dir = run_dir
        self._listeners = listeners
        self._code = code
        self._sockets: list[socket.socket] = []
        self._admins: dict[str, socket.socket] = {}
        self._memfds: list[int] = []
        self._broker_ends: dict[int, int] = {}
        self.workers = [self._make_worker(slot) for slot in range(config.worker_count)]
        self.packets = self._make_packets() if config.packets_wanted else None
        self.broker = self._make_broker() if config.broker_wanted else None
        self.console = self._make_console() if config.console.listen and os.environ.get("CONSOLE_WIP") else None

    def __iter__(self) -> Iterator[Child]:
        yield from (child for child in (self.broker, self.packets) if child)
        yield from self.workers
        if self.console:
            yield self.console

    def refit(self, before: Config, children: Children, turn: Callable[[float], None]) -> None:
        """Start, replace or end those that do not change while they run: packets and console."""
        config = self.config
        if self.packets is not None and not config.packets_wanted:
            children.end([self.packets], KILL_MARGIN, turn)
            self.packets = None
        elif self.packets is None and config.packets_wanted:
            self.packets = self._make_packets()
            children.start(self.packets)
        elif self.packets is not None and (before.alg, before.network, before.pinhole) != (
            config.alg, config.network, config.pinhole,
        ):  # fmt: skip
            children.replace(self.packets)  # its journal tells the next one what is under way
        if self.console is not None and not config.console.listen:
            children.end([self.console], KILL_MARGIN, turn)
            self.console = None
        elif self.console is None and config.console.listen:
            self.console = self._make_console()
            children.start(self.console)
        elif self.console is not None and (before.console, before.packets_wanted) != (
            config.console, config.packets_wanted,
        ):  # fmt: skip
            children.replace(self.console)

    def close(self) -> None:
        """Close the sockets; nobody can be started any more."""
        for sock in self._sockets:
            sock.close()
        for fd in self._memfds:
            os.close(fd)

    def _admin(self, name: str) -> int:
        """The socket that the command line talks to it by."""
        if name not in self._admins:
            self._admins[name] = self._run_dir.listen(name)
            self._sockets.append(self._admins[name])
        return self._admins[name].fileno()

    def _broker_pair(self, slot: int) -> int:
        """A slot of the broker; its other end. Both stay open: who replaces a dead one takes up its pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [ours, theirs]
        self._broker_ends[slot] = ours.fileno()
        return theirs.fileno()

    def _make_worker(self, slot: int) -> Child:
        name = f"worker-{slot}"
        admin = self._admin(name)
        broker = self._broker_pair(slot) if self.config.broker_wanted else None

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="worker",
                slot=slot,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                socks=self._listeners.fds(slot, "socks"),
                transparent=self._listeners.fds(slot, "transparent"),
                files=self.files.fds(),
            )

        return Child(name, "gateway.process.worker", self.config.process.user, None, self._code, boot)

    def _make_packets(self) -> Child:
        slot = self.config.worker_count
        admin = self._admin("packets")
        broker = self._broker_pair(slot)
        journal = [os.memfd_create(f"algate-journal-{i}") for i in range(2)]
        self._memfds += journal

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="packets",
                slot=slot,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                journal=journal,
            )

        # The queue is netfilter's, so reading it needs the capability; nothing else of the process does.
        user = self.config.process.broker_user
        return Child("packets", "gateway.process.packets", user, "net_admin", self._code, boot)

    def _make_broker(self) -> Child:
        admin = self._admin("broker")

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="broker", slot=0, config=self.config, lifeline=lifeline, admin=admin, workers=self._broker_ends
            )

        user = self.config.process.broker_user
        return Child("broker", "gateway.process.broker", user, "net_admin", self._code, boot)

    def _make_console(self) -> Child:
        listener = listen_console(self.config)
        self._sockets.append(listener)
        admin = self._admin("console")
        token = secrets.token_urlsafe(24)
        path = self._run_dir.write("console.token", token + "\n")
        files = {name: os.memfd_create(f"algate-{name}") for name in ("token", "totals")}
        self._memfds += files.values()
        os.write(files["token"], token.encode())
        log.info("console", listen=self.config.console.listen, token=str(path))

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="console",
                slot=0,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                console=listener.fileno(),
                files=files,
            )

        return Child("console", "gateway.process.console", self.config.process.user, None, self._code, boot)

"""Children of which an instance has one or none, as the configuration says: packets, portmap and console. They do not
change while they run; another configuration replaces them."""

from __future__ import annotations

import os
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gateway.config.schema import Config, parse_endpoint
from gateway.observe.log import get_logger
from gateway.process.boot import Boot
from gateway.supervisor.asking import AskingSockets
from gateway.supervisor.child import Child
from gateway.supervisor.children import KILL_MARGIN, Children
from gateway.supervisor.code import Code
from gateway.supervisor.kept import KeptOpen
from gateway.supervisor.listeners import listen_console

log = get_logger()

PORTMAP_SLOT = 60_000
"""The slot of the portmap process at the broker: the same however many workers there are, so that an instance that
follows one that was killed finds its mappings."""


class Equipment(NamedTuple):
    """What every child is made with: the sockets and descriptors that are kept for it, the program, and the current
    configuration."""

    kept: KeptOpen
    code: Code
    config: Callable[[], Config]


class Post(ABC):
    """The place of one child. `child` is None as long as the configuration needs none."""

    def __init__(self, equipment: Equipment) -> None:
        self.child: Child | None = None
        self._equipment = equipment

    @property
    def kept(self) -> KeptOpen:
        return self._equipment.kept

    @property
    def config(self) -> Config:
        """The configuration of the moment."""
        return self._equipment.config()

    @staticmethod
    @abstractmethod
    def is_wanted(config: Config) -> bool:
        """Whether this configuration needs the child."""

    @staticmethod
    @abstractmethod
    def concerns(config: Config) -> tuple[object, ...]:
        """Return the part of a configuration with which the child was started. If that part changes, the child is
        replaced."""

    @abstractmethod
    def make(self) -> Child:
        """Make the child, and what it needs."""

    @abstractmethod
    def prepare(self) -> None:
        """Change what is kept for the child before it is replaced."""

    @abstractmethod
    def clear(self) -> None:
        """Close what was kept for a child that is not wanted any more."""

    def fill(self) -> None:
        """Make the child, if the configuration wants it."""
        if self.is_wanted(self.config):
            self.child = self.make()

    def refit(self, before: Config, children: Children, poll: Callable[[float], None]) -> None:
        """Start, replace or end the child, as the current configuration says. `before`: the previous configuration."""
        wanted = self.is_wanted(self.config)
        if self.child is not None and not wanted:
            children.end([self.child], KILL_MARGIN, poll)
            self.kept.remove_admin(self.child.name)
            self.child = None
            self.clear()
        elif self.child is None and wanted:
            self.child = self.make()
            children.start_soon(self.child)
        elif self.child is not None and self.concerns(before) != self.concerns(self.config):
            self.prepare()
            children.replace(self.child)  # its journal, if it has one, says what is under way

    def _child(self, name: str, user: str, capability: str | None, boot: Callable[[int], Boot]) -> Child:
        return Child(name, f"gateway.process.{name}", user, capability, self._equipment.code, boot)


class PacketsPost(Post):
    """The packets process. `slot`: its number at the broker, unless an earlier version has left one."""

    def __init__(self, equipment: Equipment, slot: int) -> None:
        super().__init__(equipment)
        heritage = equipment.kept.heritage
        self.pair: tuple[int, int] | None = heritage.packets if heritage else None
        self.journal: list[int] = []
        self._slot = slot

    @staticmethod
    def is_wanted(config: Config) -> bool:
        return config.packets_wanted

    @staticmethod
    def concerns(config: Config) -> tuple[object, ...]:
        return config.alg, config.network, config.pinhole, config.log

    def make(self) -> Child:
        admin = self.kept.admin("packets")
        if self.pair is None:
            self.pair = self._slot, self.kept.broker_pair(self._slot)
        slot, broker = self.pair
        if not self.journal:
            heritage = self.kept.heritage
            inherited = heritage.journal if heritage else []
            self.journal = inherited or [os.memfd_create(f"algate-journal-{i}") for i in range(2)]
            self.kept.keep(self.journal)

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="packets",
                slot=slot,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                journal=self.journal,
            )

        # The queue is netfilter's, so reading it needs the capability; nothing else of the process does.
        return self._child("packets", self.config.process.broker_user, "net_admin", boot)

    def prepare(self) -> None:
        """Do nothing: the next packets process goes on from the same journal."""

    def clear(self) -> None:
        """The pair and the journal stay, for a configuration that wants the process again."""


class PortmapPost(Post):
    """The portmap process, and the sockets at which clients ask it."""

    def __init__(self, equipment: Equipment) -> None:
        super().__init__(equipment)
        heritage = equipment.kept.heritage
        self.asking = AskingSockets(heritage.asking if heritage else {})
        self._journal: list[int] = []
        self._broker: int | None = None

    @staticmethod
    def is_wanted(config: Config) -> bool:
        return config.portmap_wanted

    @staticmethod
    def concerns(config: Config) -> tuple[object, ...]:
        return config.portmap, config.rule, config.network, config.pinhole, config.rules, config.log

    def make(self) -> Child:
        admin = self.kept.admin("portmap")
        if self._broker is None:
            self.kept.close_inherited_end(PORTMAP_SLOT)
            self._broker = self.kept.broker_pair(PORTMAP_SLOT)
        if not self._journal:
            self._journal = [self.kept.run_dir.keep(f"portmap-{i}") for i in range(2)]
            self.kept.keep(self._journal)
        self.asking.open(self.config)
        broker = self._broker

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="portmap",
                slot=PORTMAP_SLOT,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                journal=self._journal,
                asking=self.asking.fds(),
            )

        return self._child("portmap", self.config.process.user, None, boot)

    def prepare(self) -> None:
        self.asking.open(self.config)

    def clear(self) -> None:
        self.asking.open(self.config)

    def look_for_interfaces(self, children: Children) -> None:
        """Open sockets at inside interfaces that have appeared, and close those of interfaces that are gone."""
        if self.child is not None and self.child.ready and self.asking.open(self.config):
            children.replace(self.child)


class ConsolePost(Post):
    """The console, its listener and its files. `names`: the processes that it can ask."""

    def __init__(self, equipment: Equipment, names: Callable[[], Iterable[str]]) -> None:
        super().__init__(equipment)
        self.files: dict[str, int] = {}
        self._names = names
        self._listener: tuple[str, socket.socket] | None = None

    @staticmethod
    def is_wanted(config: Config) -> bool:
        return bool(config.console.listen)

    @staticmethod
    def concerns(config: Config) -> tuple[object, ...]:
        return config.console, config.packets_wanted, config.portmap_wanted, config.log

    @property
    def listener(self) -> tuple[str, int] | None:
        """Return the address and the descriptor of the console's listener."""
        return (self._listener[0], self._listener[1].fileno()) if self._listener else None

    def prepare(self) -> None:
        """Do nothing yet: the place of the listener is checked when the next console starts."""

    def check(self) -> None:
        """Raise AlgateError if the console could not listen where the configuration says now."""
        where = self.config.console.listen
        port = parse_endpoint(where).port if where else None
        if where and (self._listener is None or port != parse_endpoint(self._listener[0]).port):  # else it is ours
            listen_console(self.config).close()

    def make(self) -> Child:
        admin = self.kept.admin("console")
        self._listen()
        if not self.files:
            self._make_files()

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="console",
                slot=0,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                console=self._listen().fileno(),
                files=self.files,
                names=["supervisor", *self._names()],
            )

        return self._child("console", self.config.process.user, None, boot)

    def clear(self) -> None:
        if self._listener is not None:
            self._listener[1].close()
            self._listener = None

    def _make_files(self) -> None:
        heritage = self.kept.heritage
        self.files = heritage.console_files if heritage else {}
        if self.files:
            self.kept.run_dir.adopt_file("console.token")
        else:
            token = secrets.token_urlsafe(24)
            path = self.kept.run_dir.write("console.token", token + "\n")
            self.files = {name: os.memfd_create(f"algate-{name}") for name in ("token", "totals")}
            os.write(self.files["token"], token.encode())
            log.info("console", listen=self.config.console.listen, token=str(path))
        self.kept.keep(self.files.values())

    def _listen(self) -> socket.socket:
        """Return the console's socket at its configured address: the one that exists, or the old version's, or a new
        one."""
        where = self.config.console.listen
        heritage = self.kept.heritage
        if self._listener is None and heritage is not None and heritage.console is not None:
            at, fd = heritage.console
            self._listener = at, socket.socket(fileno=fd)
        if self._listener is None or self._listener[0] != where:
            self.clear()  # first: one place may contain the other, as 0.0.0.0 does
            self._listener = where, listen_console(self.config)
        return self._listener[1]

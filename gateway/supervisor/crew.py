"""Determines which children a configuration needs, and what each of them is started with."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence

from alg.api import Mode
from alg.registry import declared_kinds
from gateway.config.schema import Config, parse_endpoint
from gateway.driver import announced
from gateway.observe.log import get_logger
from gateway.policy.shared_counts import SLOTS, clear, open_slot
from gateway.process import counts_file
from gateway.process.boot import Boot
from gateway.supervisor.asking import AskingSockets
from gateway.supervisor.child import Child
from gateway.supervisor.children import KILL_MARGIN, Children
from gateway.supervisor.code import Code
from gateway.supervisor.heritage import Heritage
from gateway.supervisor.listeners import Listeners, listen_console
from gateway.supervisor.run_dir import RunDir
from gateway.supervisor.shared_files import SharedFiles

log = get_logger()

PORTMAP_SLOT = 60_000
_KINDS_OF_SLOTS = {PORTMAP_SLOT: ("mapping",)}
"""The slot of the portmap process at the broker: the same however many workers there are, so that an instance that
follows one that was killed finds its mappings."""


class Crew:
    """The children of one instance, and the sockets that they find again when they are replaced.

    `heritage`: what an earlier version has left. Then `first` starts in standby, and the others when that version has
    gone.
    """

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        listeners: Listeners,
        files: SharedFiles,
        code: Code,
        heritage: Heritage | None = None,
    ) -> None:
        self.config = config
        self.files = files
        self.standby = heritage is not None
        self._heritage = heritage
        self._run_dir = run_dir
        self._listeners = listeners
        self._code = code
        self._sockets: list[socket.socket] = []
        self._admins: dict[str, socket.socket] = {}
        self._broker_ends: dict[int, int] = dict(heritage.broker_ends) if heritage else {}
        self._journal: list[int] = []
        self._packets_pair: tuple[int, int] | None = heritage.packets if heritage else None
        self._console: tuple[str, socket.socket] | None = None
        self._console_files: dict[str, int] = {}
        self._announced = os.memfd_create("algate-announced")
        os.truncate(self._announced, announced.SIZE)
        inherited = heritage.counts if heritage else None
        self._counts = counts_file.create() if inherited is None else inherited
        self._counts_view = counts_file.view(self._counts)
        self._memfds: list[int] = [self._announced, self._counts]
        self.old_slots = heritage.slots if heritage else []
        used = {*self.old_slots, *([self._packets_pair[0]] if self._packets_pair else [])}
        free = (slot for slot in itertools.count() if slot not in used)
        self.slots = list(itertools.islice(free, config.worker_count))
        self._free_slot = next(free)
        self.workers = [self._make_worker(index, slot) for index, slot in enumerate(self.slots)]
        self.packets = self._make_packets() if config.packets_wanted else None
        self._asking = AskingSockets(heritage.asking if heritage else {})
        self._portmap_journal: list[int] = []
        self._portmap_end: int | None = None
        self.portmap = self._make_portmap() if config.portmap_wanted else None
        self.broker = self._make_broker() if config.broker_wanted else None
        self.console = self._make_console() if config.console.listen else None

    def __iter__(self) -> Iterator[Child]:
        yield from (child for child in (self.broker, self.packets, self.portmap) if child)
        yield from self.workers
        if self.console:
            yield self.console

    @property
    def first(self) -> list[Child]:
        """The children that can be started while an earlier version still serves."""
        return [*([self.broker] if self.broker else []), *self.workers]

    @property
    def rest(self) -> list[Child]:
        """The children of which there can be only one at a time."""
        return [child for child in (self.packets, self.portmap, self.console) if child]

    def dismiss(self, children: Sequence[Child]) -> None:
        """Remove the admin sockets of children that have ended."""
        for child in children:
            if child.lifeline is None and child.name in self._admins:
                self._sockets.remove(self._admins[child.name])
                self._admins.pop(child.name).close()
                self._run_dir.forget(child.name)

    def forget_old(self) -> None:
        """Note that the workers of the earlier version have ended."""
        for slot in self.old_slots:
            if slot in self._broker_ends:
                os.close(self._broker_ends.pop(slot))
        self.old_slots = []

    def heritage(self, channel: int, ticket: str, admin: int) -> Heritage:
        """Return what another version needs to take over. `admin`: the supervisor's own socket."""
        admins = {name: sock.fileno() for name, sock in self._admins.items() if not name.startswith("worker-")}
        return Heritage(
            channel=channel,
            ticket=ticket,
            run_dir=str(self._run_dir.path),
            made=self._run_dir.made,
            lock=self._run_dir.lock,
            admins={**admins, "supervisor": admin},
            listeners=[
                (place.kind, place.endpoint.host, place.endpoint.port, fd) for place, fd in self._listeners.all()
            ],
            slots=[*self.slots, *self.old_slots],
            broker_ends=self._broker_ends,
            packets=self._packets_pair,
            journal=self._journal,
            console=(self._console[0], self._console[1].fileno()) if self._console else None,
            console_files=self._console_files,
            counts=self._counts,
            name=self._run_dir.name.descriptor if self._run_dir.name is not None else None,
            asking=self._asking.fds(),
        )

    def check_console(self) -> None:
        """Raise AlgateError if the console could not listen where the configuration says now."""
        where = self.config.console.listen
        port = parse_endpoint(where).port if where else None
        if where and (self._console is None or port != parse_endpoint(self._console[0]).port):  # else it is ours
            listen_console(self.config).close()

    def refit(self, before: Config, children: Children, poll: Callable[[float], None]) -> None:
        """Start, replace or end the children that do not change while they run: packets and console."""
        config = self.config
        if self.packets is not None and not config.packets_wanted:
            children.end([self.packets], KILL_MARGIN, poll)
            self.dismiss([self.packets])
            self.packets = None
        elif self.packets is None and config.packets_wanted:
            self.packets = self._make_packets()
            children.start_soon(self.packets)
        elif self.packets is not None and (before.alg, before.network, before.pinhole, before.log) != (
            config.alg, config.network, config.pinhole, config.log,
        ):  # fmt: skip
            children.replace(self.packets)  # its journal tells the next one what is under way
        self._refit_portmap(before, children, poll)
        if self.console is not None and not config.console.listen:
            children.end([self.console], KILL_MARGIN, poll)
            self.dismiss([self.console])
            self.console = None
            self._close_console()
        elif self.console is None and config.console.listen:
            self.console = self._make_console()
            children.start_soon(self.console)
        elif self.console is not None and (
            before.console, before.packets_wanted, before.portmap_wanted, before.log,
        ) != (config.console, config.packets_wanted, config.portmap_wanted, config.log):  # fmt: skip
            children.replace(self.console)

    def _refit_portmap(self, before: Config, children: Children, poll: Callable[[float], None]) -> None:
        config = self.config
        if self.portmap is not None and not config.portmap_wanted:
            children.end([self.portmap], KILL_MARGIN, poll)
            self.dismiss([self.portmap])
            self.portmap = None
            self._asking.open(config)
        elif self.portmap is None and config.portmap_wanted:
            self.portmap = self._make_portmap()
            children.start_soon(self.portmap)
        elif self.portmap is not None and (
            before.portmap, before.rule, before.network, before.pinhole, before.rules, before.log,
        ) != (config.portmap, config.rule, config.network, config.pinhole, config.rules, config.log):  # fmt: skip
            self._asking.open(config)
            children.replace(self.portmap)  # its journal tells the next one what is open

    def look_for_interfaces(self, children: Children) -> None:
        """Let clients ask at inside interfaces that have come, and no more at those that have gone."""
        if self.portmap is not None and self.portmap.ready and self._asking.open(self.config):
            children.replace(self.portmap)

    def close(self) -> None:
        """Close the sockets. No child can be started afterwards."""
        self._close_console()
        self._asking.close()
        for sock in self._sockets:
            sock.close()
        for fd in self._memfds:
            os.close(fd)

    def _admin(self, name: str) -> int:
        """Return the admin socket of a child."""
        if name not in self._admins:
            inherited = self._heritage.admins.get(name) if self._heritage else None
            run_dir = self._run_dir
            self._admins[name] = run_dir.listen(name) if inherited is None else run_dir.adopt(name, inherited)
            self._sockets.append(self._admins[name])
        return self._admins[name].fileno()

    def _broker_pair(self, slot: int) -> int:
        """Return the broker's end of a slot, and its other end. Both stay open, so that a replaced process uses its
        predecessor's pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [ours, theirs]
        self._broker_ends[slot] = ours.fileno()
        return theirs.fileno()

    def _make_worker(self, index: int, slot: int) -> Child:
        name = f"worker-{slot}"
        admin = self._admin(name)
        broker = self._broker_pair(slot) if self.config.broker_wanted else None
        if slot < SLOTS:
            open_slot(self._counts_view, slot)

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="worker",
                slot=slot,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                socks=self._listeners.fds(index, "socks"),
                tls=self._listeners.fds(index, "tls"),
                transparent=self._listeners.fds(index, "transparent"),
                files={**self.files.fds(), "announced": self._announced},
                counts=self._counts,
                standby=self.standby,
            )

        def ended() -> None:
            if slot < SLOTS:
                clear(self._counts_view, slot)

        return Child(name, "gateway.process.worker", self.config.process.user, None, self._code, boot, ended)

    def _make_packets(self) -> Child:
        admin = self._admin("packets")
        if self._packets_pair is None:
            self._packets_pair = self._free_slot, self._broker_pair(self._free_slot)
        slot, broker = self._packets_pair
        if not self._journal:
            inherited = self._heritage.journal if self._heritage else []
            self._journal = inherited or [os.memfd_create(f"algate-journal-{i}") for i in range(2)]
            self._memfds += self._journal

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="packets",
                slot=slot,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                journal=self._journal,
            )

        # The queue is netfilter's, so reading it needs the capability; nothing else of the process does.
        user = self.config.process.broker_user
        return Child("packets", "gateway.process.packets", user, "net_admin", self._code, boot)

    def _make_portmap(self) -> Child:
        admin = self._admin("portmap")
        if self._portmap_end is None:
            inherited = self._broker_ends.pop(PORTMAP_SLOT, None)  # of an earlier version: its process has ended
            if inherited is not None:
                os.close(inherited)
            self._portmap_end = self._broker_pair(PORTMAP_SLOT)
        if not self._portmap_journal:
            self._portmap_journal = [self._run_dir.keep(f"portmap-{i}") for i in range(2)]
            self._memfds += self._portmap_journal
        self._asking.open(self.config)
        broker = self._portmap_end

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="portmap",
                slot=PORTMAP_SLOT,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                broker=broker,
                journal=self._portmap_journal,
                asking=self._asking.fds(),
            )

        return Child("portmap", "gateway.process.portmap", self.config.process.user, None, self._code, boot)

    def _make_broker(self) -> Child:
        admin = self._admin("broker")

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="broker",
                slot=0,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                workers=self._broker_ends,
                kinds={**dict.fromkeys(self._broker_ends, self._kinds()), **_KINDS_OF_SLOTS},
                standby=self.standby,
            )

        user = self.config.process.broker_user
        return Child("broker", "gateway.process.broker", user, "net_admin", self._code, boot)

    def _kinds(self) -> tuple[str, ...]:
        """The kinds of pinholes that the enabled modules declare."""
        enabled = [name for name, section in self.config.alg.items() if section.mode is not Mode.OFF]
        return declared_kinds(enabled)

    def _make_console(self) -> Child:
        admin = self._admin("console")
        self._console_listener()
        if not self._console_files:
            self._console_files = self._heritage.console_files if self._heritage else {}
            self._memfds += self._console_files.values()
        if self._console_files:
            self._run_dir.adopt_file("console.token")
        else:
            token = secrets.token_urlsafe(24)
            path = self._run_dir.write("console.token", token + "\n")
            self._console_files = {name: os.memfd_create(f"algate-{name}") for name in ("token", "totals")}
            self._memfds += self._console_files.values()
            os.write(self._console_files["token"], token.encode())
            log.info("console", listen=self.config.console.listen, token=str(path))

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="console",
                slot=0,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                console=self._console_listener().fileno(),
                files=self._console_files,
                names=["supervisor", *(child.name for child in self)],
            )

        return Child("console", "gateway.process.console", self.config.process.user, None, self._code, boot)

    def _console_listener(self) -> socket.socket:
        """Return the console's socket at its configured address: the one that exists, or the old version's, or a new
        one."""
        where = self.config.console.listen
        if self._console is None and self._heritage is not None and self._heritage.console is not None:
            at, fd = self._heritage.console
            self._console = at, socket.socket(fileno=fd)
        if self._console is None or self._console[0] != where:
            self._close_console()  # first: one place may contain the other, as 0.0.0.0 does
            self._console = where, listen_console(self.config)
        return self._console[1]

    def _close_console(self) -> None:
        if self._console is not None:
            self._console[1].close()
            self._console = None

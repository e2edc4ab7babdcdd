"""Determines which children a configuration needs, and what each of them is started with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from alg.api import Mode
from alg.registry import declared_kinds
from gateway.config.schema import Config
from gateway.driver import announced
from gateway.process.boot import Boot
from gateway.supervisor.child import Child
from gateway.supervisor.children import Children
from gateway.supervisor.code import Code
from gateway.supervisor.heritage import Heritage
from gateway.supervisor.kept import KeptOpen, WorkerMemory
from gateway.supervisor.listeners import Listeners
from gateway.supervisor.posts import PORTMAP_SLOT, ConsolePost, Equipment, PacketsPost, PortmapPost, Post
from gateway.supervisor.run_dir import RunDir
from gateway.supervisor.shared_files import SharedFiles

_KINDS_OF_SLOTS = {PORTMAP_SLOT: ("mapping",)}


class Crew:
    """The children of one instance: workers, a broker, and a child for each post.

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
        self._listeners = listeners
        self._kept = KeptOpen(run_dir, heritage)
        self._equipment = Equipment(self._kept, code, lambda: self.config)
        self._memory = WorkerMemory(self._kept, announced.SIZE)
        self.old_slots = heritage.slots if heritage else []
        used = {*self.old_slots, *([heritage.packets[0]] if heritage and heritage.packets else [])}
        free = (slot for slot in itertools.count() if slot not in used)
        self.slots = list(itertools.islice(free, config.worker_count))
        self._packets = PacketsPost(self._equipment, next(free))
        self._portmap = PortmapPost(self._equipment)
        self._console = ConsolePost(self._equipment, lambda: (child.name for child in self))
        self.workers = [self._make_worker(index, slot) for index, slot in enumerate(self.slots)]
        self._packets.fill()
        self._portmap.fill()
        self.broker = self._make_broker() if config.broker_wanted else None
        self._console.fill()

    def __iter__(self) -> Iterator[Child]:
        yield from (child for child in (self.broker, self.packets, self.portmap) if child)
        yield from self.workers
        if self.console:
            yield self.console

    @property
    def packets(self) -> Child | None:
        return self._packets.child

    @property
    def portmap(self) -> Child | None:
        return self._portmap.child

    @property
    def console(self) -> Child | None:
        return self._console.child

    @property
    def _posts(self) -> tuple[Post, ...]:
        return self._packets, self._portmap, self._console

    @property
    def first(self) -> list[Child]:
        """The children that can be started while an earlier version still serves."""
        return [*([self.broker] if self.broker else []), *self.workers]

    @property
    def rest(self) -> list[Child]:
        """The children of which there can be only one at a time."""
        return [post.child for post in self._posts if post.child]

    def dismiss(self, children: Sequence[Child]) -> None:
        """Remove the admin sockets of children that have ended."""
        for child in children:
            if child.lifeline is None:
                self._kept.remove_admin(child.name)

    def forget_old(self) -> None:
        """Note that the workers of the earlier version have ended. What its supervisor takes away at its end is taken
        away again: it may have been killed."""
        for slot in self.old_slots:
            self._kept.close_inherited_end(slot)
            self._memory.clear(slot)
        self._kept.run_dir.remove_sockets(f"worker-{slot}" for slot in self.old_slots)
        self.old_slots = []

    def heritage(self, channel: int, ticket: str, admin: int) -> Heritage:
        """Return what another version needs to take over. `admin`: the supervisor's own socket."""
        kept, run_dir = self._kept, self._kept.run_dir
        admins = {name: fd for name, fd in kept.admins.items() if not name.startswith("worker-")}
        return Heritage(
            channel=channel,
            ticket=ticket,
            run_dir=str(run_dir.path),
            made=run_dir.made,
            lock=run_dir.lock,
            admins={**admins, "supervisor": admin},
            listeners=[
                (place.kind, place.endpoint.host, place.endpoint.port, fd) for place, fd in self._listeners.all()
            ],
            slots=[*self.slots, *self.old_slots],
            broker_ends=kept.broker_ends,
            packets=self._packets.pair,
            journal=self._packets.journal,
            console=self._console.listener,
            console_files=self._console.files,
            counts=self._memory.counts,
            name=run_dir.name.descriptor if run_dir.name is not None else None,
            asking=self._portmap.asking.fds(),
        )

    def check_console(self) -> None:
        """Raise AlgateError if the console could not listen where the configuration says now."""
        self._console.check()

    def refit(self, before: Config, children: Children, poll: Callable[[float], None]) -> None:
        """Start, replace or end the children that do not change while they run."""
        for post in self._posts:
            post.refit(before, children, poll)

    def look_for_interfaces(self, children: Children) -> None:
        """Open sockets at inside interfaces that have appeared, and close those of interfaces that are gone, so that
        clients can ask there."""
        self._portmap.look_for_interfaces(children)

    def close(self) -> None:
        """Close the sockets. No child can be started afterwards."""
        self._console.clear()
        self._portmap.asking.close()
        self._kept.close()

    def _make_worker(self, index: int, slot: int) -> Child:
        name = f"worker-{slot}"
        admin = self._kept.admin(name)
        broker = self._kept.broker_pair(slot) if self.config.broker_wanted else None
        memory = self._memory
        memory.open_slot(slot)

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
                files={**self.files.fds(), "announced": memory.announced},
                counts=memory.counts,
                standby=self.standby,
            )

        user = self.config.process.user
        return Child(name, "gateway.process.worker", user, None, self._equipment.code, boot, lambda: memory.clear(slot))

    def _make_broker(self) -> Child:
        admin, ends = self._kept.admin("broker"), self._kept.broker_ends

        def boot(lifeline: int) -> Boot:
            return Boot(
                role="broker",
                slot=0,
                config=self.config,
                lifeline=lifeline,
                admin=admin,
                workers=ends,
                kinds={**dict.fromkeys(ends, self._kinds()), **_KINDS_OF_SLOTS},
                standby=self.standby,
            )

        user = self.config.process.broker_user
        return Child("broker", "gateway.process.broker", user, "net_admin", self._equipment.code, boot)

    def _kinds(self) -> tuple[str, ...]:
        """The kinds of pinholes that the enabled modules declare."""
        enabled = [name for name, section in self.config.alg.items() if section.mode is not Mode.OFF]
        return declared_kinds(enabled)

"""What the supervisor keeps open for its children: a process that replaces another finds the sockets, files and memory
of the one before it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from gateway.policy.shared_counts import SLOTS, clear, open_slot
from gateway.process import counts_file
from gateway.supervisor.heritage import Heritage
from gateway.supervisor.run_dir import RunDir


class KeptOpen:
    """Sockets and descriptors of the children of one instance. `heritage`: what an earlier version has left."""

    def __init__(self, run_dir: RunDir, heritage: Heritage | None) -> None:
        self.run_dir = run_dir
        self.heritage = heritage
        self.broker_ends: dict[int, int] = dict(heritage.broker_ends) if heritage else {}
        self._admins: dict[str, socket.socket] = {}
        self._sockets: list[socket.socket] = []
        self._fds: list[int] = []

    @property
    def admins(self) -> dict[str, int]:
        """The sockets of the command line, by process."""
        return {name: sock.fileno() for name, sock in self._admins.items()}

    def admin(self, name: str) -> int:
        """Return the command line's socket of a child: the one that exists, or the old version's, or a new one."""
        if name not in self._admins:
            inherited = self.heritage.admins.get(name) if self.heritage else None
            run_dir = self.run_dir
            self._admins[name] = run_dir.listen(name) if inherited is None else run_dir.adopt(name, inherited)
        return self._admins[name].fileno()

    def remove_admin(self, name: str) -> None:
        """Remove the command line's socket of a child that has ended, if it has one."""
        if name in self._admins:
            self._admins.pop(name).close()
            self.run_dir.forget(name)

    def broker_pair(self, slot: int) -> int:
        """Make the socket pair of a slot. Returns the end of its process; the broker's is in `broker_ends`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets += [ours, theirs]
        self.broker_ends[slot] = ours.fileno()
        return theirs.fileno()

    def close_inherited_end(self, slot: int) -> None:
        """Close the broker's end of a slot of an earlier version, whose process has ended."""
        if slot in self.broker_ends:
            os.close(self.broker_ends.pop(slot))

    def keep(self, fds: Iterable[int]) -> None:
        """Keep descriptors until the end."""
        self._fds += fds

    def close(self) -> None:
        """Close all sockets and descriptors. No child can be started afterwards."""
        for sock in (*self._sockets, *self._admins.values()):
            sock.close()
        for fd in self._fds:
            os.close(fd)


class WorkerMemory:
    """Memory that the workers share: `announced`, where clients are about to connect, and `counts`, what each has.

    `counts` is that of an earlier version, if there is one. Both are descriptors, and belong to `kept`.
    """

    def __init__(self, kept: KeptOpen, announced_size: int) -> None:
        self.announced = os.memfd_create("algate-announced")
        os.truncate(self.announced, announced_size)
        inherited = kept.heritage.counts if kept.heritage else None
        self.counts = counts_file.create() if inherited is None else inherited
        self._view = counts_file.view(self.counts)
        kept.keep([self.announced, self.counts])

    def open_slot(self, slot: int) -> None:
        """Let the worker of a slot count."""
        if slot < SLOTS:
            open_slot(self._view, slot)

    def clear(self, slot: int) -> None:
        """Forget what the worker of a slot has counted, because it has ended."""
        if slot < SLOTS:
            clear(self._view, slot)

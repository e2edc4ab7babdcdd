"""How the supervisor hands a child its configuration and descriptors: one JSON document in an inherited memfd.

A child that has given up its privileges may be unable to read the configuration file or to bind a port, so it gets both
ready made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from gateway.config.schema import Config


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process starts with. Numbers are inherited descriptors.

    - `lifeline`: a socket to the supervisor (gateway/process/lifeline.py); its end means that the supervisor is dead.
    - `admin`: a listening unix stream socket for `algate status` and similar commands.
    - `workers` (broker): by slot, one SEQPACKET socket for each worker, and one each for packets and portmap.
    - `broker` (worker, packets, portmap): the other end of its own socket of these.
    - `kinds` (broker): by slot, the kinds of pinholes that the process may ask for.
    - `socks`, `tls`, `transparent` (worker): listening TCP sockets of this slot.
    - `journal` (packets): two memfds that outlive the process, for its successor. (portmap): two files in the run
      directory, which outlive a supervisor that is killed, too.
    - `asking` (portmap): the sockets at which clients ask, by what is asked there, interface and family
      (gateway/supervisor/asking.py): "pcp eth1 4", "ssdp eth1 6", "http eth1 4".
    - `console` (console): its listening TCP socket.
    - `files` (console): "token", the secret that changes require; "totals", which outlives the process.
    - `files` (worker): memfds of the files that it may not read itself, by name ("users", "keytab", "certificate",
      "client_ca"); when a file has changed, a new one comes over the lifeline. And "announced", memory that all workers
      share (gateway/driver/announced.py).
    - `names` (console): the processes that can be asked.
    - `counts` (worker): the memory in which all workers count (gateway/process/counts_file.py).
    - `standby` (worker, broker): be ready, but begin when the lifeline says so.
    """

    role: str
    slot: int
    config: Config
    lifeline: int
    admin: int
    workers: dict[int, int] = {}
    kinds: dict[int, tuple[str, ...]] = {}
    broker: int | None = None
    journal: list[int] = []
    socks: list[int] = []
    tls: list[int] = []
    transparent: list[int] = []
    console: int | None = None
    files: dict[str, int] = {}
    names: list[str] = []
    counts: int | None = None
    asking: dict[str, int] = {}
    standby: bool = False

    def descriptors(self) -> list[int]:
        """Return all descriptors, in a fixed order."""
        optional = [fd for fd in (self.broker, self.console, self.counts) if fd is not None]
        return [
            self.lifeline, self.admin, *self.workers.values(), *optional, *self.journal, *self.socks, *self.tls,
            *self.transparent, *self.files.values(), *self.asking.values(),
        ]  # fmt: skip

    def known_already(self) -> list[int]:
        """Return the descriptors that a child has already when it gets the document of another configuration."""
        return [self.lifeline, self.admin, *(fd for fd in (self.broker, self.counts) if fd is not None)]

    def own(self) -> list[int]:
        """Return the descriptors that belong to a worker because of such a message."""
        return [*self.socks, *self.tls, *self.transparent, *self.files.values()]

    def renumbered(self, numbers: Sequence[int]) -> Boot:
        """Return the document with other numbers for `descriptors`, as they are in the process that has received
        them."""
        new = dict(zip(self.descriptors(), numbers, strict=True))
        return msgspec.structs.replace(
            self,
            lifeline=new[self.lifeline],
            admin=new[self.admin],
            workers={slot: new[fd] for slot, fd in self.workers.items()},
            broker=None if self.broker is None else new[self.broker],
            journal=[new[fd] for fd in self.journal],
            socks=[new[fd] for fd in self.socks],
            tls=[new[fd] for fd in self.tls],
            transparent=[new[fd] for fd in self.transparent],
            console=None if self.console is None else new[self.console],
            counts=None if self.counts is None else new[self.counts],
            files={name: new[fd] for name, fd in self.files.items()},
            asking={name: new[fd] for name, fd in self.asking.items()},
        )

    def to_memfd(self) -> int:
        """Write the document to a new memfd, and return that, positioned at its start."""
        fd = os.memfd_create("algate-boot", 0)
        os.write(fd, msgspec.json.encode(self))
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def from_memfd(cls, fd: int) -> Boot:
        """Read what `to_memfd` wrote, and close the descriptor."""
        with open(fd, "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)

"""How the supervisor hands a child its configuration and descriptors: one JSON document in an inherited memfd.

A child that has given up its privileges may be unable to read the configuration file or to bind a port; so it gets
both ready made.
"""

from __future__ import annotations

import os

import msgspec

from gateway.config import Config


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process starts with. Numbers are inherited descriptors.

    lifeline: a stream socket to the supervisor; the child writes b"ready\\n"; end of stream: the supervisor is dead.
    admin: a listening unix stream socket for `algate status` and its kin.
    workers (broker): one SEQPACKET socket per worker slot, one for packets. broker (worker, packets): its other end.
    socks, transparent (worker): listening TCP sockets of this slot.
    journal (packets): two memfds that outlive it, for what its successor has to know.
    files (worker): memfds of the files that it may not read itself, by name ("users", "keytab"); when a file has
    changed a new one comes over the lifeline, with the name and a newline.
    """

    role: str
    slot: int
    config: Config
    lifeline: int
    admin: int
    workers: list[int] = []
    broker: int | None = None
    journal: list[int] = []
    socks: list[int] = []
    transparent: list[int] = []
    files: dict[str, int] = {}

    def to_memfd(self) -> int:
        """Write it to a new memfd and return that, positioned at its start."""
        fd = os.memfd_create("algate-boot", 0)
        os.write(fd, msgspec.json.encode(self))
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def from_memfd(cls, fd: int) -> Boot:
        """Read what `to_memfd` wrote, and close the descriptor."""
        with open(fd, "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)

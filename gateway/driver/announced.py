"""Data connections that clients are about to make, as modules have read: such a connection is no control connection,
whatever its port.

A passive data connection may go to a port of another module (5060, for example), and may come to another worker than
its control connection. So this is memory that the workers share. Each writes only a region of its own, which is a ring
of entries of 16 bytes: a hash of the connection's ends, and the time until which the entry counts. Modules leave words
for one another in it too (`alg.api.Board`).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import time
from collections.abc import Callable

from alg.address import Endpoint

ENTRIES = 512  # of each worker; the oldest is overwritten
REGIONS = 16  # of the memory; more workers share one
_ENTRY = struct.Struct("<8sd")
_REGION = ENTRIES * _ENTRY.size  # bytes of each worker
SIZE = REGIONS * _REGION
LONGEST = 300.0  # seconds for which an entry counts at most


class Announced:
    """`memory`: SIZE bytes that the processes share, or just a bytearray; `own`: the number of the process that writes
    here.

    `now` is a clock that all processes share (CLOCK_MONOTONIC).
    """

    def __init__(
        self, memory: bytearray | mmap.mmap | None = None, own: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = memory if memory is not None else bytearray(SIZE)
        self._base = own % REGIONS * _REGION
        self._next = 0
        self._now = now

    def add(self, client: str, target: Endpoint, seconds: float) -> None:
        """Announce that `client` is about to connect to `target`, within `seconds`."""
        self.pin(f"{client} {target}", seconds)

    def has(self, client: str, target: Endpoint) -> bool:
        """Whether this connection was announced, and the announcement still counts."""
        return self.pinned(f"{client} {target}")

    def pin(self, word: str, seconds: float) -> None:
        """See `alg.api.Board.pin`."""
        entry = _ENTRY.pack(_hash(word), self._now() + min(seconds, LONGEST))
        at = self._base + self._next * _ENTRY.size
        self._memory[at : at + _ENTRY.size] = entry
        self._next = (self._next + 1) % ENTRIES

    def pinned(self, word: str) -> bool:
        """See `alg.api.Board.pinned`."""
        wanted, memory, now = _hash(word), self._memory, self._now()
        at = memory.find(wanted)
        while at >= 0:
            if not at % _ENTRY.size and _ENTRY.unpack_from(memory, at)[1] > now:
                return True
            at = memory.find(wanted, at + 1)
        return False


def _hash(word: str) -> bytes:
    return hashlib.blake2b(word.encode(), digest_size=8).digest()

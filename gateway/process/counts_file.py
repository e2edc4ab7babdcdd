"""The memory in which all workers count: a memfd that the supervisor makes, and every worker maps."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator

from gateway.observe.counters import count
from gateway.policy.shared_counts import SIZE, SLOTS, SharedCounts

PATIENCE = 0.002  # seconds that a lock is waited for: no worker can hold up the others, whatever it does with a lock


def create() -> int:
    """Create the memory, and return its descriptor."""
    fd = os.memfd_create("algate-counts")
    os.ftruncate(fd, SIZE)
    return fd


def view(fd: int) -> memoryview:
    """Return the whole memory as numbers. The mapping exists as long as the result."""
    return memoryview(mmap.mmap(fd, SIZE)).cast("Q")


def shared_counts(fd: int | None, slot: int) -> SharedCounts:
    """Return the counts of a worker. Without a descriptor, or beyond the last slot, the worker counts alone. Owns the
    descriptor."""
    if fd is None or slot >= SLOTS:
        return SharedCounts.alone()
    return SharedCounts(view(fd), slot, _Locks(fd).hold)


class _Locks:
    """Locks between processes: record locks (fcntl(2)) on bytes of the memory's file. The kernel releases them when a
    process dies.

    They belong to the process, so only one thread may use them, and must not wait for anything while it holds one.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextlib.contextmanager
    def hold(self, key: int) -> Iterator[None]:
        at = key & 0x7FFFFFFF
        have = self._take(at)
        try:
            yield
        finally:
            if have:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, at)

    def _take(self, at: int) -> bool:
        until = 0.0
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
                return True
            except OSError:
                now = time.monotonic()
                until = until or now + PATIENCE
                if now >= until:
                    count("algate_shared_counts_missed_total", "lock")
                    return False
                os.sched_yield()

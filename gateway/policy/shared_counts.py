"""Counts that all workers of an instance share, in shared memory. Pure: the memory is an argument.

Each worker writes to its own slot and nowhere else, and reads all of them. A *cell* belongs to a key (what is counted,
and for which client) and holds two sorts of numbers:

- `live`: how many there are now, of up to KINDS kinds. The supervisor sets them to zero when the worker dies (`clear`),
  so that nothing leaks;
- `spent`, `mark` and `until`: what was used up, and times. They stay: the next worker in the slot goes on with them.

The memory is a header (a version, how often a slot was opened, and which slots are) and, for each slot, a hash table of
CELLS cells in sets of WAYS. A cell that an earlier process left, and that nothing has asked for since, is reused when
its set is full. A key for which there is no room is counted in its own worker only; `full` says how often that has
happened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator

VERSION = 1  # of the layout; in the first word
SLOTS = 128  # workers of one instance at a time, those of an earlier version that still drain included
WAYS = 4
CELLS = 1 << 15  # of one slot
KINDS = 4
WORDS = 8  # of a cell: its key, live of each kind, spent, mark, until
HEADER = 2 + SLOTS
SIZE = 8 * (HEADER + SLOTS * CELLS * WORDS)  # bytes; pages that are never touched take no memory

_SETS = CELLS // WAYS
_SET = WAYS * WORDS
_SLOT = CELLS * WORDS
LIVE, _SPENT, _MARK, _UNTIL = 1, 1 + KINDS, 2 + KINDS, 3 + KINDS

Lock = Callable[[int], contextlib.AbstractContextManager[object]]
"""`lock(key)`: while it is held, no other worker holds the lock of this key."""


@functools.lru_cache(maxsize=1 << 14)
def key_of(*parts: str) -> int:
    """Return the 64-bit key for `parts`: the same in every process, and never 0."""
    text = "\0".join(parts).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1


@contextlib.contextmanager
def no_lock(_key: int) -> Iterator[None]:
    """Stands for the lock where a process shares its counts with no other: does nothing."""
    yield


class SharedCounts:
    """One worker's view of the memory. `words`: all of it as unsigned 64-bit numbers; `slot`: the slot that it
    writes."""

    def __init__(self, words: memoryview, slot: int = 0, lock: Lock = no_lock) -> None:
        if not 0 <= slot < SLOTS:
            raise ValueError(f"there are {SLOTS} slots, and no {slot}")
        self.lock = lock
        self.slot = slot
        self.full = 0
        self.words = words
        self._mine: set[int] = set()  # cells that are in use here
        self._base = HEADER + slot * _SLOT
        self._opened = 0
        self._others: tuple[int, ...] = ()

    @classmethod
    def alone(cls) -> SharedCounts:
        """Make counts of one process that shares with no other."""
        words = memoryview(bytearray(8 * (HEADER + _SLOT))).cast("Q")
        open_slot(words, 0)
        return cls(words, 0)

    def cell(self, key: int) -> Cell:
        """Return the cell of a key: in the shared memory or, if that has no room, one of this process alone."""
        words = self.words
        start = self._base + key % _SETS * _SET
        free = 0
        for at in range(start, start + _SET, WORDS):
            found = words[at]
            if found == key:
                self._mine.add(at)
                return Cell(self, key, at, words)
            if not free and not found:
                free = at
        if not free:
            idle = [at for at in range(start, start + _SET, WORDS) if at not in self._mine]
            if not idle:
                self.full += 1
                return Cell(self, key, 0, memoryview(bytearray(8 * WORDS)).cast("Q"))
            free = min(idle, key=lambda at: words[at + _MARK])
            words[free] = 0  # first, so that a process that reads meanwhile finds nothing of another key
        for at in range(free + 1, free + WORDS):
            words[at] = 0
        words[free] = key
        self._mine.add(free)
        return Cell(self, key, free, words)

    def left_by_predecessor(self, key: int) -> tuple[int, int, int]:
        """Return `spent`, `mark` and `until` of a key in this slot, as an earlier process may have left them; zeros if
        there is nothing."""
        words = self.words
        start = self._base + key % _SETS * _SET
        for at in range(start, start + _SET, WORDS):
            if words[at] == key:
                return words[at + _SPENT], words[at + _MARK], words[at + _UNTIL]
        return 0, 0, 0

    def elsewhere(self, key: int) -> list[int]:
        """Return where the cells of this key in other slots are, as indices into `words`."""
        words = self.words
        if words[1] != self._opened:
            self._opened = words[1]
            self._others = tuple(
                HEADER + slot * _SLOT for slot in range(SLOTS) if words[2 + slot] and slot != self.slot
            )
        offset = key % _SETS * _SET
        found = []
        for base in self._others:
            start = base + offset
            if words[start] == key:
                found.append(start)
            else:
                for at in range(start + WORDS, start + _SET, WORDS):
                    if words[at] == key:
                        found.append(at)
                        break
        return found

    def others(self, key: int) -> list[tuple[int, int, int, int]]:
        """Return `live`, `spent`, `mark` and `until` of a key in each of the other slots."""
        words = self.words
        return [
            (words[at + LIVE], words[at + _SPENT], words[at + _MARK], words[at + _UNTIL]) for at in self.elsewhere(key)
        ]


class Cell:
    """The numbers of one key: this worker's own, which it may change, and those of all workers. For code in a hurry
    `words[at + LIVE + kind]` is the count itself. Properties are of the first kind."""

    __slots__ = ("_key", "_shared", "at", "words")

    def __init__(self, shared: SharedCounts, key: int, at: int, words: memoryview) -> None:
        self._shared = shared
        self._key = key
        self.at = at
        self.words = words

    @property
    def live(self) -> int:
        """The number that this worker has."""
        return int(self.words[self.at + LIVE])

    @live.setter
    def live(self, number: int) -> None:
        self.words[self.at + LIVE] = number

    @property
    def spent(self) -> int:
        return int(self.words[self.at + _SPENT])

    @spent.setter
    def spent(self, number: int) -> None:
        self.words[self.at + _SPENT] = number

    @property
    def mark(self) -> int:
        return int(self.words[self.at + _MARK])

    @mark.setter
    def mark(self, number: int) -> None:
        self.words[self.at + _MARK] = number

    @property
    def until(self) -> int:
        return int(self.words[self.at + _UNTIL])

    @until.setter
    def until(self, number: int) -> None:
        self.words[self.at + _UNTIL] = number

    def live_elsewhere(self, kind: int = 0) -> int:
        """Return the number of a kind that the other workers have."""
        words = self._shared.words
        return sum([words[at + LIVE + kind] for at in self._shared.elsewhere(self._key)])

    def all_live(self) -> int:
        """The number that all workers have together."""
        return self.live + self.live_elsewhere()

    def others(self) -> list[tuple[int, int, int, int]]:
        """Return `live`, `spent`, `mark` and `until` of the other workers that have a cell of this key."""
        return self._shared.others(self._key)

    def first_of_live(self) -> bool:
        """Whether no worker in a lower slot has any."""
        shared = self._shared
        return not any(at < shared._base and shared.words[at + LIVE] for at in shared.elsewhere(self._key))

    def release(self) -> None:
        """Free the cell: this worker has nothing of the key, and nothing is to be remembered. The object must not be
        used afterwards."""
        if self.at:
            self.words[self.at] = 0
            self._shared._mine.discard(self.at)


def open_slot(words: memoryview, slot: int) -> None:
    """Mark a slot as used by a worker. Called by the supervisor; calling it again has no effect."""
    words[0] = VERSION
    if not words[2 + slot]:
        words[2 + slot] = 1
        words[1] += 1


def clear(words: memoryview, slot: int) -> None:
    """Set to zero what the worker of this slot had, because it has ended. Called by the supervisor."""
    base = HEADER + slot * _SLOT
    for at in range(base, base + _SLOT, WORDS):
        if words[at]:
            for kind in range(KINDS):
                words[at + LIVE + kind] = 0

"""Counts that all workers of an instance have in common, in memory that they share. Pure: the memory is an argument.

Each worker writes to its own slot and nowhere else, and reads all of them. A *cell* belongs to a key (what is counted,
for whom) and holds numbers of two sorts:

- `live`: how many there are now, of up to KINDS kinds. The supervisor sets them to zero when the worker dies (`clear`),
  so that nothing leaks;
- `spent`, `mark` and `until`: what was used up, and times. They stay: who takes the slot next goes on with them.

The memory is a header (a version, how often a slot was opened, and which slots are) and, for each slot, a hash table of
CELLS cells in sets of WAYS. What a process before has left, and nobody has asked for since, gives way when its set is
full; a key for which there is no room is counted in its own worker only, and `full` says how often that has happened.
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
SIZE = 8 * (HEADER + SLOTS * CELLS * WORDS)  # bytes; pages that nobody touches take no memory

_SETS = CELLS // WAYS
_SET = WAYS * WORDS
_SLOT = CELLS * WORDS
LIVE, _SPENT, _MARK, _UNTIL = 1, 1 + KINDS, 2 + KINDS, 3 + KINDS

Lock = Callable[[int], contextlib.AbstractContextManager[object]]
"""`lock(key)`: while it is held no other worker holds the lock of this key."""


@functools.lru_cache(maxsize=1 << 14)
def key_of(*parts: str) -> int:
    """The 64-bit key of what `parts` name: the same in every process, and never 0."""
    text = "\0".join(parts).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1


@contextlib.contextmanager
def no_lock(_key: int) -> Iterator[None]:
    """For one process alone."""
    yield


class SharedCounts:
    """What one worker sees of the memory. `words`: all of it as unsigned 64-bit numbers; `slot`: where it writes."""

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
        """Of one process that shares with nobody."""
        words = memoryview(bytearray(8 * (HEADER + _SLOT))).cast("Q")
        open_slot(words, 0)
        return cls(words, 0)

    def cell(self, key: int) -> Cell:
        """The cell of this key: one in the shared memory, or where that has no room, one of this process alone."""
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
            words[free] = 0  # first: whoever reads meanwhile finds nothing rather than what is another's
        for at in range(free + 1, free + WORDS):
            words[at] = 0
        words[free] = key
        self._mine.add(free)
        return Cell(self, key, free, words)

    def left_by_predecessor(self, key: int) -> tuple[int, int, int]:
        """`spent`, `mark` and `until` of a key in this slot, which this process need not have asked for: zeros if there
        is nothing."""
        words = self.words
        start = self._base + key % _SETS * _SET
        for at in range(start, start + _SET, WORDS):
            if words[at] == key:
                return words[at + _SPENT], words[at + _MARK], words[at + _UNTIL]
        return 0, 0, 0

    def elsewhere(self, key: int) -> list[int]:
        """Where the cells of this key in other slots are, as indices into `words`."""
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
        """`live`, `spent`, `mark` and `until` of a key in the other slots."""
        words = self.words
        return [
            (words[at + LIVE], words[at + _SPENT], words[at + _MARK], words[at + _UNTIL]) for at in self.elsewhere(key)
        ]


class Cell:
    """The numbers of one key: this worker's own to be changed, and those of all to be read. `words` and `at` are where
    they are, for who has no time: `words[at + LIVE + kind]`. Properties are of the first kind."""

    __slots__ = ("_key", "_shared", "at", "words")

    def __init__(self, shared: SharedCounts, key: int, at: int, words: memoryview) -> None:
        self._shared = shared
        self._key = key
        self.at = at
        self.words = words

    @property
    def live(self) -> int:
        """How many this worker holds."""
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
        """How many the other workers hold."""
        words = self._shared.words
        return sum([words[at + LIVE + kind] for at in self._shared.elsewhere(self._key)])

    def all_live(self) -> int:
        """How many all workers hold."""
        return self.live + self.live_elsewhere()

    def others(self) -> list[tuple[int, int, int, int]]:
        """`live`, `spent`, `mark` and `until` of the other workers that have a cell of this key."""
        return self._shared.others(self._key)

    def first_of_live(self) -> bool:
        """Whether no worker in a lower slot holds any."""
        shared = self._shared
        return not any(at < shared._base and shared.words[at + LIVE] for at in shared.elsewhere(self._key))

    def release(self) -> None:
        """Nobody here holds anything of it any more, and nothing of it is to be remembered. It is of no use then."""
        if self.at:
            self.words[self.at] = 0
            self._shared._mine.discard(self.at)


def open_slot(words: memoryview, slot: int) -> None:
    """There will be a worker in this slot. For the supervisor; again: nothing happens."""
    words[0] = VERSION
    if not words[2 + slot]:
        words[2 + slot] = 1
        words[1] += 1


def clear(words: memoryview, slot: int) -> None:
    """The worker of this slot has ended: it holds nothing any more. For the supervisor."""
    base = HEADER + slot * _SLOT
    for at in range(base, base + _SLOT, WORDS):
        if words[at]:
            for kind in range(KINDS):
                words[at + LIVE + kind] = 0

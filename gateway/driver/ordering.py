"""The order of datagrams that wait for a decision: none overtakes another one of its way."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar


class QueuedDatagram:
    """A datagram that was not sent on yet; `ready` when it may be. `way`: from where to where; `since`: when it
    came."""

    __slots__ = ("kept", "number", "queue", "ready", "since", "way")

    def __init__(self, way: Hashable, since: float) -> None:
        self.way = way
        self.since = since
        self.number = 0
        self.ready = False
        self.kept = False  # whether it had to wait
        self.queue: deque[QueuedDatagram] | None = None  # where it waits, with those of its way


H = TypeVar("H", bound=QueuedDatagram)


class InOrder(Generic[H]):
    """All datagrams that wait. Only those that cannot be sent on at once are put into a queue; nearly all can.

    `kept`: how many wait, decided on or not.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._held: dict[int, H] = {}
        self._queues: dict[Hashable, deque[H]] = {}
        self.kept = 0

    def __len__(self) -> int:
        """The number of datagrams on which the module has not decided yet."""
        return len(self._held)

    def numbers(self) -> list[int]:
        """The numbers of the datagrams that were not decided on yet."""
        return list(self._held)

    def oldest(self) -> H | None:
        """The datagram that has waited the longest of those that were not decided on yet."""
        return next(iter(self._held.values()), None)

    def of_way(self, way: Hashable) -> list[H]:
        """Return the datagrams that wait on this way, decided on or not."""
        return list(self._queues.get(way, ()))

    def add(self, held: H) -> H:
        """Add a datagram, with a new number."""
        held.number = next(self._numbers)
        self._held[held.number] = held
        queue = self._queues.get(held.way)
        if queue is not None:
            queue.append(held)
            held.queue = queue  # type: ignore[assignment]
        return held

    def keep(self, held: H) -> bool:
        """Queue a datagram if it has to wait, after everything was done that could be done at once. Returns whether it
        waits."""
        if held.ready:
            if not held.queue:
                return False
        elif held.queue is None:
            held.queue = self._queues[held.way] = deque((held,))  # type: ignore[assignment]
        held.kept = True
        self.kept += 1
        return True

    def get(self, number: int) -> H | None:
        """Return the datagram with this number, if it waits and was not decided on."""
        return self._held.get(number)

    def take(self, number: int) -> H | None:
        """Remove and return the datagram with this number; None if it was taken, or forgotten."""
        return self._held.pop(number, None)

    def let_go(self, held: H) -> list[H]:
        """Mark a datagram as ready, and return those that can be sent on now, in order."""
        held.ready = True
        if held.queue is None:
            return [held]
        queue = self._queues[held.way]
        gone = []
        while queue and queue[0].ready:
            first = queue.popleft()
            self.kept -= first.kept
            gone.append(first)
        if not queue:
            del self._queues[held.way]
        return gone

    def clear(self) -> None:
        """Forget all datagrams."""
        self._held.clear()
        self._queues.clear()
        self.kept = 0

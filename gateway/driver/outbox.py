"""The datagrams that a driver has taken and not sent on yet: their order, what they wait for, and their edits.

Every datagram that is added is sent once, edited or as it came, and none overtakes another one of its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from alg.address import Endpoint
from alg.api import Edit, Rung, Side, apply_edits
from alg.datagrams import Release
from gateway.driver.ordering import InOrder, QueuedDatagram
from gateway.observe.counters import Key, counts
from gateway.observe.trace import Trace

LONGEST_HOLD = 2.5
"""Seconds that a datagram waits at most. Then it is sent on, whatever its module or the broker has still to answer."""


class HeldDatagram(QueuedDatagram):
    """A datagram that was not sent on yet.

    `item`: what identifies it for the carrier. `edited`: what is sent in place of `data`, if anything. `edits`, `rung`:
    what the module's `Release` said; `waits`: the conversations that have to let a peer in before it is sent.
    """

    __slots__ = ("client", "data", "edited", "edits", "item", "rung", "server", "side", "waits")

    def __init__(
        self, way: Hashable, side: Side, client: Endpoint, server: Endpoint, data: bytes, item: Any, since: float
    ) -> None:
        super().__init__(way, since)
        self.side = side
        self.client = client
        self.server = server
        self.data = data
        self.item = item
        self.edited: bytes | None = None
        self.edits: tuple[Edit, ...] = ()
        self.rung: Rung | None = None
        self.waits: set[int] | None = None


class Outbox:
    """The datagrams of one module. `send` sends one on. `trace`: where they are shown, None: nowhere, and `flow` the id
    of the flow there. `most`: how many may wait at a time. `rewrites`: whether edits are made, and not only counted.
    `misfit(held, error)` is called for edits that do not fit.

    `counters`: the datagrams that had to wait ("held"), for too long ("overdue"), and those that were sent on unread
    because too many waited ("crowded").
    """

    def __init__(
        self,
        send: Callable[[HeldDatagram], None],
        trace: Trace | None,
        flow: str,
        most: int,
        rewrites: bool,
        misfit: Callable[[HeldDatagram, ValueError], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._send = send
        self._trace = trace
        self._flow = flow
        self._most = most
        self._rewrites = rewrites
        self._misfit = misfit
        self._waiting: InOrder[HeldDatagram] = InOrder()
        self._behind: dict[int, list[HeldDatagram]] = {}  # by the conversation that has to let a peer in first
        self._edit_keys: dict[str, Key] = {}

    def __len__(self) -> int:
        """The number of datagrams on which the module has not decided yet."""
        return len(self._waiting)

    def add(self, held: HeldDatagram) -> bool:
        """Add a datagram, with a number. False: there was no room, and it is sent on unread."""
        if self._waiting.kept >= self._most and not self._make_room(held.way):
            self.counters["crowded"] += 1
            self._send(held)
            return False
        self._waiting.add(held)
        return True

    def _make_room(self, way: Hashable) -> bool:
        """Make room when too many wait: those of this way are sent on as they are, in order. Returns whether there is
        room now."""
        for waiting in self._waiting.of_way(way):
            self.end_wait(waiting.number)
        return self._waiting.kept < self._most

    def keep(self, held: HeldDatagram) -> bool:
        """Keep a datagram if it could not be sent on at once. Returns whether it waits."""
        if not self._waiting.keep(held):
            return False
        if not held.ready:
            self.counters["held"] += 1
        return True

    def release(self, command: Release, admitting: set[int] | None) -> None:
        """Send a datagram on as the module says, when these conversations have let their peers in."""
        held = self._waiting.get(command.packet)
        if held is None:  # its time was over
            return
        held.edits, held.rung = command.edits, command.rung
        if admitting:
            held.waits = admitting
            for ref in admitting:
                self._behind.setdefault(ref, []).append(held)
        else:
            self.go(held)

    def admitted(self, ref: int) -> None:
        """Send on what waited for peers to be let in to this conversation."""
        for held in self._behind.pop(ref, ()):
            if held.waits is not None:
                held.waits.discard(ref)
                if not held.waits:
                    self.go(held)

    def end_wait(self, number: int) -> None:
        """End the wait of a datagram. What the module has said about it holds."""
        held = self._waiting.get(number)
        if held is not None:
            self.go(held)

    def go(self, held: HeldDatagram) -> None:
        """Send a datagram on, and those that waited for it alone."""
        if self._waiting.take(held.number) is None:
            return
        held.waits = None
        edits = held.edits
        if self._trace is not None:
            ends = (held.client, held.server) if held.side is Side.CLIENT else (held.server, held.client)
            self._trace.add(held.side, ends[0], ends[1], held.data, edits, self._flow, held.rung, transport="udp")
        if edits:
            self._count(edits)
            if self._rewrites:
                try:
                    held.edited = apply_edits(held.data, edits)
                except ValueError as error:
                    self._misfit(held, error)
        for ready in self._waiting.let_go(held):
            self._send(ready)

    def _count(self, edits: tuple[Edit, ...]) -> None:
        for edit in edits:
            key = self._edit_keys.get(edit.reason)
            if key is None:
                done = "yes" if self._rewrites else "no"
                key = self._edit_keys[edit.reason] = ("algate_edits_total", edit.reason, done)
            counts[key] += 1

    def deadline(self) -> float | None:
        """Return when the first of them has waited for too long."""
        oldest = self._waiting.oldest()
        return None if oldest is None else oldest.since + LONGEST_HOLD

    def tick(self, now: float) -> None:
        """Send on what has waited for too long."""
        while (oldest := self._waiting.oldest()) is not None and oldest.since + LONGEST_HOLD <= now:
            self.counters["overdue"] += 1
            self.end_wait(oldest.number)

    def flush(self) -> None:
        """Send everything on as it is."""
        for number in self._waiting.numbers():
            self.end_wait(number)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._behind.clear()

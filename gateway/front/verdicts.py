"""Packets that wait for a verdict, and in which order they go."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import Protocol

from alg.address import Endpoint
from alg.api import Side
from gateway.front.udp_packet import UdpPacket


class QueuedPacket(Protocol):
    """A packet of NFQUEUE. `retain` keeps its bytes beyond the callback; `accept` ends it."""

    def get_payload(self) -> bytes: ...

    def set_payload(self, payload: bytes) -> None: ...

    def retain(self) -> None: ...

    def accept(self) -> None: ...


class Held:
    """A packet without a verdict; `ready` when it may go, with `payload` if that is another one."""

    __slots__ = ("number", "packet", "parsed", "payload", "queue", "ready", "side", "since")

    def __init__(self, number: int, packet: QueuedPacket, parsed: UdpPacket, side: Side, since: float) -> None:
        self.number = number
        self.packet = packet
        self.parsed = parsed
        self.side = side
        self.since = since
        self.ready = False
        self.payload: bytes | None = None
        self.queue: deque[Held] | None = None  # where it waits, with those from the same socket to the same socket


class Verdicts:
    """All packets of a queue that have no verdict yet. None overtakes another one of its sockets, as the kernel would
    have let them go."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._numbers = itertools.count(1)
        self._held: dict[int, Held] = {}
        self._queues: dict[tuple[Endpoint, Endpoint], deque[Held]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def numbers(self) -> list[int]:
        """Of all that wait."""
        return list(self._held)

    def oldest(self) -> Held | None:
        """Who waits the longest."""
        return next(iter(self._held.values()), None)

    def add(self, packet: QueuedPacket, parsed: UdpPacket, side: Side, now: float) -> Held:
        """A packet that has come; its number is new."""
        number = next(self._numbers)
        held = self._held[number] = Held(number, packet, parsed, side, now)
        queue = self._queues.get((parsed.source, parsed.destination))
        if queue is not None:
            queue.append(held)
            held.queue = queue
        return held

    def keep(self, held: Held) -> bool:
        """The callback of its packet ends: whether it is still to be decided on."""
        if not held.ready:
            if held.queue is None:
                held.queue = self._queues[held.parsed.source, held.parsed.destination] = deque((held,))
            held.packet.retain()
            return True
        if held.queue:
            held.packet.retain()
        return False

    def take(self, number: int) -> Held | None:
        """What has waited under this number; None if it has been taken."""
        return self._held.pop(number, None)

    def let_go(self, held: Held) -> None:
        """It may go, as soon as those before it do."""
        held.ready = True
        if held.queue is None:
            self._accept(held)
            return
        while held.queue and held.queue[0].ready:
            self._accept(held.queue.popleft())
        if not held.queue:
            del self._queues[held.parsed.source, held.parsed.destination]

    def _accept(self, held: Held) -> None:
        if held.payload is not None:
            try:
                held.packet.set_payload(held.parsed.with_payload(held.payload))
                self._counters["edited"] += 1
            except ValueError:
                self._counters["untouched_grown"] += 1
        held.packet.accept()

"""Media packets that come just before their sender is let in: they wait a moment, and then the kernel decides.

A far side sends its answer and its first media at the same time. The answer waits until the kernel lets these media in,
and the media are faster. So a packet to a conversation's port from a host that is no peer yet waits here, before
connection tracking has decided where it goes: until a peer is let in there, for `LONGEST` seconds at most. Then the
kernel looks again, and drops what still comes from no peer (`iptables/algate.nft`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gevent

from alg.address import Endpoint
from gateway.broker.marks import PASSING
from gateway.broker.nfqueue import QueuedPacket
from gateway.front.packets.packet import NotWhole, ends_of

LONGEST = 0.06  # seconds
MOST = 256  # packets that wait; a further one does not
MOST_OF_PORT = 16  # of one public port, so that one sender cannot take the room of others


class EarlyMedia:
    """The packets that wait. `take` is the queue's callback; `admitted` is called when a peer is let in."""

    def __init__(self) -> None:
        self._waiting: dict[Endpoint, deque[QueuedPacket]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, packet: QueuedPacket) -> None:
        """Handle one packet of the queue."""
        try:
            _, public = ends_of(packet.get_payload())
        except NotWhole:
            _go_on(packet)
            return
        waiting = self._waiting.get(public)
        if self._count >= MOST or (waiting is not None and len(waiting) >= MOST_OF_PORT):
            _go_on(packet)
            return
        if waiting is None:
            waiting = self._waiting[public] = deque()
            _later(LONGEST, lambda: self._release(public, waiting))
        waiting.append(packet)
        self._count += 1

    def admitted(self, public: Endpoint, ports: int) -> None:
        """Note that a peer was let in to `ports` public ports, from `public` on."""
        if self._waiting:
            for port in range(public.port, public.port + ports):
                endpoint = Endpoint(public.host, port)
                if (waiting := self._waiting.get(endpoint)) is not None:
                    self._release(endpoint, waiting)

    def _release(self, public: Endpoint, waiting: deque[QueuedPacket]) -> None:
        if self._waiting.get(public) is waiting:
            del self._waiting[public]
        while waiting:
            self._count -= 1
            _go_on(waiting.popleft())


def _go_on(packet: QueuedPacket) -> None:
    """Let a packet of mangle PREROUTING go on, through the rules of others there, without the mark by which it was
    queued."""
    packet.set_mark(packet.mark & ~PASSING)
    packet.repeat()


def _later(seconds: float, action: Callable[[], None]) -> None:
    timer: Any = gevent.get_hub().loop.timer(seconds)

    def fire() -> None:
        timer.close()
        action()

    timer.start(fire)

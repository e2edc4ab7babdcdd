"""Tells all clients at once that the epoch has begun again: they have to ask again for what they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent

from gateway.front.portmap.datagrams import DatagramSocket

GROUPS = {4: "224.0.0.1", 6: "ff02::1"}
PORT = 5350
FIRST, TIMES = 0.25, 10
"""Seconds until it is said again, which double each time (RFC 6887 section 14.1.1, RFC 6886 section 3.2.1)."""


class Announcer:
    """Says it at all sockets. `said`: what to say to clients of a family, asked anew each time."""

    def __init__(self, sockets: Sequence[DatagramSocket], said: Callable[[int], list[bytes]]) -> None:
        self._sockets = sockets
        self._said = said
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def begin(self) -> None:
        """Send the announcement now and nine times more. An earlier announcement that is under way ends."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        pause = FIRST
        for _ in range(TIMES):
            for sock in self._sockets:
                for data in self._said(sock.version):
                    sock.multicast(data, GROUPS[sock.version], PORT)
            gevent.sleep(pause)
            pause *= 2

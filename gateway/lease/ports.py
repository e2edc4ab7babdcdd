"""Chooses public ports: random ones that are free and were not used recently. Pure; times are monotonic."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from alg.address import Endpoint
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Transport

HOLD = 10.0
"""Seconds that a port rests after its pinhole closed: long enough for the SYN retransmissions (1, 3, 7 s) of a late
peer."""

REST = {"udp": 2.0, "tcp": 4.0}
"""Seconds that a port rests at least when ports are scarce. UDP: what a peer still sends after the end of a call is
over by then. TCP: the SYN retransmissions after 1 and 3 seconds are over; after 2 seconds the port goes to a pinhole of
another peer only, as it lets in nobody else. So 10,000 ports serve 1,000 TCP pinholes a second that close at once."""

_RANDOM_TRIES = 12
_RESTED_TRIES = 32
_RANGE_TRIES = 256

_Port = tuple[Transport, str, int]
_Kind = tuple[Transport, str, int]  # the last is how many ports, one beside the other
Inside = tuple[str, int, int | None]
"""The sockets of a conversation: their address, the port behind the (first) public one, and that behind the second."""


class PublicPorts:
    """The public ports of one backend. `hold`: seconds that a port rests, `HOLD` by default."""

    def __init__(self, hold: float = HOLD) -> None:
        self._hold = hold
        self._low = self._high = 0
        self._read: tuple[int, int] | None = None
        # Plain tuples, which Python's garbage collector need not look at again: there are tens of thousands.
        self._busy: dict[_Port, float] = {}
        # Until when, the first, its peer, and whose it was.
        self._resting: dict[_Kind, deque[tuple[float, int, str | None, Inside | None]]] = {}
        self._latest: dict[Inside, tuple[float, str, int]] = {}  # of those that rest: until when, host and first port
        self._first = math.inf  # the first of these times

    def configure(self, ports: tuple[int, int], read_ports: tuple[int, int] | None) -> None:
        """Set the lowest and the highest port, and those that are only for datagrams that a module reads."""
        self._low, self._high = ports
        self._read = read_ports

    def choose(
        self,
        host: str,
        transports: Sequence[Transport],
        width: int,
        read: bool,
        now: float,
        rng: random.Random,
        is_free: Callable[[int], bool],
        peer: str | None = None,
    ) -> Endpoint:
        """Choose `width` (1 or 2) free ports of `host`, and return the first; of two it is even. `peer`: the only
        host that may connect, if there is one. Raises PinholeRefused "ports"."""
        low, high = self._range(read)
        lowest = low + low % width  # RTP and RTCP: even and the next (RFC 3550, 11). So both of them are chosen as one

        def usable(port: int) -> bool:
            return all(self._busy.get((each, host, port), -math.inf) <= now for each in transports) and is_free(port)

        for choice in _random((high - lowest + 1) // width, rng):
            port = lowest + choice * width
            if usable(port) and (width == 1 or usable(port + 1)):
                return Endpoint(host, port)
        if len(transports) == 1:
            for port in self._rested(transports[0], host, width, now, rng, peer):
                if lowest <= port <= high + 1 - width and all(is_free(port + offset) for offset in range(width)):
                    return Endpoint(host, port)
                self._forget(transports[0], host, port, width)
        for port in _around(lowest, high + 2 - width, width, rng):
            if usable(port) and (width == 1 or usable(port + 1)):
                return Endpoint(host, port)
        raise PinholeRefused("ports", f"no port between {low} and {high} is free")

    def _range(self, read: bool) -> tuple[int, int]:
        if self._read is None:
            return self._low, self._high
        return self._read if read else (self._low, self._read[0] - 1)

    def again(self, host: str, inside: Inside, now: float, is_free: Callable[[int], bool]) -> Endpoint | None:
        """Return the (first) public port that the sockets of a conversation had a moment ago, while it rests; None:
        there is none.

        Connection tracking still translates what they send to that port, until somebody has looked (decision 0035); and
        what a late peer sends reaches nobody for whom it was not.
        """
        until, at, first = self._latest.get(inside, (-math.inf, "", 0))
        width = 1 if inside[2] is None else 2
        if at != host or until <= now or not self._is_resting(until, "udp", host, first, width):
            return None
        low, high = self._range(self.is_read(first))
        if not low <= first <= high + 1 - width or not all(is_free(first + offset) for offset in range(width)):
            return None
        return Endpoint(host, first)

    def may_have(self, host: str, transports: Sequence[Transport], port: int, is_free: Callable[[int], bool]) -> bool:
        """Return whether a port that a request suggests can be given; it may be resting."""
        return self._is_nobodys(host, transports, port) and is_free(port)

    def beyond(
        self,
        host: str,
        transports: Sequence[Transport],
        ports: tuple[int, int],
        rng: random.Random,
        is_free: Callable[[int], bool],
    ) -> Endpoint:
        """Choose a free port of another range, but none of the pinholes' own. Raises PinholeRefused "ports"."""
        low, high = ports
        for _ in range(_RANGE_TRIES):
            port = rng.randint(low, high)
            if not self._low <= port <= self._high and self.may_have(host, transports, port, is_free):
                return Endpoint(host, port)
        raise PinholeRefused("ports", f"no port between {low} and {high} was found free")

    def _is_nobodys(self, host: str, transports: Sequence[Transport], port: int) -> bool:
        return all(self._busy.get((each, host, port)) != math.inf for each in transports)

    def is_read(self, port: int) -> bool:
        """Return whether the port is one of those for datagrams that a module reads."""
        return self._read is not None and self._read[0] <= port <= self._read[1]

    def _rested(
        self, transport: Transport, host: str, width: int, now: float, rng: random.Random, peer: str | None
    ) -> Iterator[int]:
        """Choose among resting ports: at random among those that have rested the longest, so that the choice cannot be
        guessed."""
        queue = self._resting.get((transport, host, width))
        for _ in range(_RESTED_TRIES):
            if not queue:
                return
            at = rng.randrange(min(_RESTED_TRIES, len(queue)))
            until, first, was, inside = queue[at]
            if until - self._hold + _least(transport, was, peer) > now:
                at, (until, first, was, inside) = 0, queue[0]
                if until - self._hold + _least(transport, was, peer) > now:
                    return
            del queue[at]
            self._forget_inside(inside, until)
            if self._is_resting(until, transport, host, first, width):
                yield first

    def _forget_inside(self, inside: Inside | None, until: float) -> None:
        if inside is not None and self._latest.get(inside, (-math.inf,))[0] == until:
            del self._latest[inside]

    def _forget(self, transport: Transport, host: str, first: int, count: int) -> None:
        for port in range(first, first + count):
            del self._busy[transport, host, port]

    def _is_resting(self, until: float, transport: Transport, host: str, first: int, count: int) -> bool:
        return all(self._busy.get((transport, host, first + offset)) == until for offset in range(count))

    def take(self, transport: Transport, first: Endpoint, count: int) -> None:
        """Mark ports as used."""
        for port in range(first.port, first.port + count):
            self._busy[transport, first.host, port] = math.inf

    def give_back(
        self,
        transport: Transport,
        first: Endpoint,
        count: int,
        now: float,
        peer: str | None = None,
        inside: Inside | None = None,
    ) -> None:
        """Mark ports as free again; they begin to rest. `peer`: the only host that might connect, if there was one.
        `inside`: the sockets of a conversation that had them, which may have them again (`again`)."""
        if not count:
            return
        until = now + self._hold
        for port in range(first.port, first.port + count):
            self._busy[transport, first.host, port] = until
        self._resting.setdefault((transport, first.host, count), deque()).append((until, first.port, peer, inside))
        if inside is not None:
            self._latest[inside] = until, first.host, first.port
        self._first = min(self._first, until)

    def tick(self, now: float) -> None:
        """Forget the ports that have rested long enough."""
        if self._first > now:
            return
        for (transport, host, count), queue in list(self._resting.items()):
            while queue and queue[0][0] <= now:
                until, first, _, inside = queue.popleft()
                self._forget_inside(inside, until)
                for port in range(first, first + count):
                    if self._busy.get((transport, host, port)) == until:
                        del self._busy[transport, host, port]
            if not queue:
                del self._resting[transport, host, count]
        self._first = min((queue[0][0] for queue in self._resting.values()), default=math.inf)

    def deadline(self) -> float:
        """Return when `tick` has something to do; infinity if nothing rests."""
        return self._first


def _least(transport: Transport, was: str | None, peer: str | None) -> float:
    """The seconds for which a port rests, which `was` let in to, until one that `peer` is let in to may have it."""
    return REST["udp"] if None not in (was, peer) and was != peer else REST[transport]


def _random(choices: int, rng: random.Random) -> Iterator[int]:
    for _ in range(_RANDOM_TRIES if choices > 0 else 0):
        yield rng.randrange(choices)


def _around(low: int, end: int, step: int, rng: random.Random) -> Iterator[int]:
    """Yield all ports, starting with a random one."""
    every = range(low, end, step)
    if every:
        start = rng.randrange(len(every))
        yield from every[start:]
        yield from every[:start]

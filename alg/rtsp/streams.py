"""The client's sockets that have ports on the router, and which streams of which sessions use them.

Of a client inside the world finds them at public ports. Of a client outside, whose server inside is published, the
server finds them at ports of the router's inside address, and the client finds the server's at public ones (an
exchange).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alg.address import Endpoint
from alg.api import ClosePinhole, Command, OpenConversation, OpenExchange, UpdateConversation, UpdateExchange

TTL = 300.0  # seconds that a port is open without us; refreshed at half of it
UNCLAIMED = 30.0  # seconds that a port waits for a client to ask once more, with its password
MOST_SOURCES = 4  # hosts beside the server that may send to one socket

Sockets = tuple[int, int | None]


@dataclass(slots=True)
class Pair:
    """A socket of the client for media, and perhaps one for RTCP. Times are seconds of the events' clock.

    `public`: the first port at which the server finds it, once that is open; `facing`: of an exchange, the first port
    at which the client finds the server; `server`: what is behind that, once it is known. `claims`: session and URI of
    the streams that use it. `sources`: who may send to it beside the server. `refresh_at`: when the broker is to be
    told that it is still in use. `unclaimed_at`: when it closes, if no stream claims it until then; 0: a request that
    names it is under way.
    """

    ref: int
    sockets: Sockets
    reason: str
    refresh_at: float
    public: Endpoint | None = None
    facing: Endpoint | None = None
    server: tuple[Endpoint, int | None] | None = None
    claims: set[tuple[bytes, bytes]] = field(default_factory=set)
    sources: list[str] = field(default_factory=list)
    unclaimed_at: float = 0.0

    def public_port(self, number: int) -> int | None:
        """Return the public port for the client's port `number`."""
        if self.public is None or number not in self.sockets:
            return None
        return self.public.port + self.sockets.index(number)

    def own_port(self, number: int) -> int | None:
        """The client's port behind the public port `number`."""
        if self.public is None:
            return None
        place = number - self.public.port
        return self.sockets[place] if place in (0, 1) else None


class Pairs:
    """All pairs of ports of one connection. `client` and `server` are its ends. `published`: the server is inside and
    the client is not."""

    def __init__(self, client: str, server: str, most: int, published: bool = False) -> None:
        self._published = published
        self._client = client
        self._server = server
        self._most = most
        self._pairs: dict[int, Pair] = {}
        self._ref = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, ref: int) -> Pair | None:
        return self._pairs.get(ref)

    def of(self, sockets: Sockets) -> Pair | None:
        """The pair that these sockets have."""
        return next((pair for pair in self._pairs.values() if pair.sockets == sockets), None)

    def open(self, sockets: Sockets, reason: str, now: float) -> tuple[Pair, Command] | None:
        """A pair for these sockets, and what opens it; None: there are too many."""
        if len(self._pairs) >= self._most:
            return None
        self._ref += 1
        pair = self._pairs[self._ref] = Pair(self._ref, sockets, reason, now + TTL / 2)
        target = Endpoint(self._client, sockets[0])
        if self._published:
            return pair, OpenExchange(self._ref, target, None, TTL, reason, sockets[1])
        return pair, OpenConversation(self._ref, target, sockets[1], (self._server,), TTL, reason)

    def lost(self, ref: int) -> None:
        """Note that the pinhole `ref` was not opened, or is no longer open."""
        self._pairs.pop(ref, None)

    def let_in(self, pair: Pair, host: str) -> list[Command]:
        """Let another host send to the pair; [] if it may already, or if there are too many."""
        if host == self._server or host in pair.sources or len(pair.sources) >= MOST_SOURCES:
            return []
        pair.sources.append(host)
        return [UpdateConversation(pair.ref, self._peers(pair), None)]

    def serves(self, pair: Pair, first: int, second: int | None) -> list[Command]:
        """The server sends from these ports of its own."""
        if (pair.sockets[1] is None) is not (second is None):
            second = None if pair.sockets[1] is None else second or first + 1
        pair.server = Endpoint(self._server, first), second
        return [UpdateExchange(pair.ref, pair.server[0], second, None)]

    def drop(self, refs: list[int], but: set[int]) -> list[Command]:
        """Close those of `refs` that no stream claims and no request names (`but`)."""
        commands: list[Command] = []
        for ref in refs:
            pair = self._pairs.get(ref)
            if pair is not None and not pair.claims and ref not in but:
                del self._pairs[ref]
                commands.append(ClosePinhole(ref))
        return commands

    def torn_down(self, session: bytes, uri: bytes, but: set[int]) -> list[Command]:
        """Close the pairs of a session: one pair, if `uri` is that of one stream among several, otherwise all of
        them."""
        claims = {claim for pair in self._pairs.values() for claim in pair.claims if session in (b"", claim[0])}
        gone = {claim for claim in claims if claim[1] == uri}
        if not gone or gone == claims:
            gone = claims
        touched = [pair.ref for pair in self._pairs.values() if pair.claims & gone]
        for ref in touched:
            self._pairs[ref].claims -= gone
        return self.drop(touched, but)

    def deadline(self) -> float | None:
        """Return the time at which `tick` has something to do."""
        times = [pair.refresh_at for pair in self._pairs.values()]
        times += [pair.unclaimed_at for pair in self._pairs.values() if pair.unclaimed_at and not pair.claims]
        return min(times, default=None)

    def tick(self, now: float, but: set[int]) -> list[Command]:
        """Prolong the pairs in use, and close those that no session has claimed in time."""
        late = [p.ref for p in self._pairs.values() if not p.claims and 0 < p.unclaimed_at <= now]
        commands = self.drop(late, but)
        for pair in self._pairs.values():
            if pair.ref in late:
                pair.unclaimed_at = 0.0
            if pair.refresh_at <= now:
                pair.refresh_at = now + TTL / 2
                commands += self._refresh(pair)
        return commands

    def _refresh(self, pair: Pair) -> list[Command]:
        if not self._published:
            return [UpdateConversation(pair.ref, self._peers(pair), TTL)]
        return [UpdateExchange(pair.ref, *pair.server, TTL)] if pair.server is not None else []

    def _peers(self, pair: Pair) -> tuple[str, ...]:
        return (self._server, *pair.sources)

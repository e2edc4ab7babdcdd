"""The inside sockets that have a public port, and the claims on them: what needs a socket, and until when."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from enum import Enum

from alg.address import Endpoint
from alg.api import ClosePinhole, FindSocket, OpenConversation, UpdateConversation

TTL = 300.0  # seconds that the driver is asked for at once; refreshed when half of them are over
SLACK = 60.0  # seconds by which it may end too early until it is refreshed, when only its peers change
SIGNALLING = "sip.signalling"  # the reason of a socket that speaks SIP; all others are for media
PORT = "port"  # the rule of a port that is never given out
TAKEN = "taken"  # ... and of one that has a conversation already
REFUSED_FOR = 10.0  # seconds before a socket that was refused is asked for again
FOUND_FOR = 60.0  # seconds before another engine's socket is asked about again
MOST_FOUND = 64
MOST_PEERS = 8
MOST_SPEAKERS = 8  # sockets of the client that have named one socket

Peers = tuple[str, ...] | None
Claim = tuple[str, tuple[str | bytes, ...]]  # its kind, and what it belongs to


class SocketState(Enum):
    """The state of a socket's pinhole."""

    OPENING = "opening"
    OPEN = "open"
    REFUSED = "refused"


@dataclass(slots=True)
class InsideSocket:
    """An inside socket `target` (and `second`, a port beside it) and its public endpoint, once it is `OPEN`.

    `spelled`: how the client writes it ("via", "uri"), for the way back; `speakers`: from which other sockets it was
    named. `claims`: what needs it, with the peers that each lets in and the time until which it is needed.
    """

    ref: int
    target: Endpoint
    second: int | None
    reason: str
    state: SocketState = SocketState.OPENING
    public: Endpoint | None = None
    peers: Peers = ()
    ends: float = 0.0  # when the driver will close it
    claims: dict[Claim, tuple[Peers, float]] = field(default_factory=dict)
    spelled: dict[str, bytes] = field(default_factory=dict)
    speakers: list[Endpoint] = field(default_factory=list)
    due: float = 0.0  # when it is to be refreshed
    written: bytes = b""  # `public` as messages have it; nothing where there is nothing to be changed for it
    borrowed: bool = False  # another engine has opened it, and sees to it

    def __post_init__(self) -> None:
        self.show_as(self.public)

    def named_by(self, socket: Endpoint) -> None:
        """Note that the client's socket `socket` has named this one to others."""
        if socket != self.target and socket not in self.speakers:
            self.speakers = [*self.speakers[1 - MOST_SPEAKERS :], socket]

    def is_of(self, socket: Endpoint) -> bool:
        """Whether this is the inside socket `socket`, or one that it has named as its own."""
        return socket == self.target or socket in self.speakers

    def show_as(self, public: Endpoint | None) -> None:
        """Advertise `public` from now on."""
        self.public = public
        self.written = b"" if public is None or public == self.target else str(public).encode()


Commands = OpenConversation | UpdateConversation | ClosePinhole | FindSocket


class InsideSockets:
    """All inside sockets of an engine. Commands for the driver are put into `out`, which its owner empties; the numbers
    of sockets that change into `changed`, if they are recorded."""

    def __init__(self) -> None:
        self.out: list[Commands] = []
        self.changed: set[int] | None = None
        self._refs: dict[int, InsideSocket] = {}
        self._targets: dict[Endpoint, InsideSocket] = {}
        self._seconds: dict[Endpoint, InsideSocket] = {}  # by the port beside their target
        self._publics: dict[Endpoint, tuple[InsideSocket, Endpoint]] = {}
        self._stream: InsideSocket | None = None
        self._found: dict[Endpoint, InsideSocket] = {}
        self._timers: list[tuple[float, int]] = []
        self._last_ref = 0

    def __len__(self) -> int:
        return len(self._refs)

    def all(self) -> list[InsideSocket]:
        return list(self._refs.values())

    def of(self, target: Endpoint) -> InsideSocket | None:
        """Return the entry of the inside socket `target`, which speaks SIP; for a fixed socket, that one."""
        if self._stream is not None and self._stream.target == target:
            return self._stream
        return self._targets.get(target)

    def is_fixed(self, inside: InsideSocket | None) -> bool:
        """Whether this is the fixed socket, at which the client is reached whatever address it names."""
        return inside is not None and inside is self._stream

    def by_ref(self, ref: int) -> InsideSocket | None:
        """Return the socket with this number."""
        return self._refs.get(ref)

    def behind(self, public: Endpoint) -> tuple[InsideSocket, Endpoint] | None:
        """Return the socket that is advertised as `public` where SIP is spoken, and the inside socket behind that
        port."""
        if self._stream is not None and self._stream.public == public:
            return self._stream, self._stream.target
        return self._publics.get(public)

    def media_behind(self, public: Endpoint) -> tuple[InsideSocket, Endpoint] | None:
        """Return the socket that is advertised as `public` for media, and the inside socket behind that port."""
        found = self._publics.get(public)
        return found if found is not None and found[0].reason != SIGNALLING else None

    def fix(self, target: Endpoint, public: Endpoint) -> InsideSocket:
        """Add a socket whose public endpoint exists without anybody opening it: a TCP connection, or the socket of a
        SOCKS association. It never ends.

        A UDP port of the same number that media use, inside or outside, is another one.
        """
        self._stream = InsideSocket(0, target, None, SIGNALLING, SocketState.OPEN, public)
        return self._stream

    def find(self, target: Endpoint, now: float) -> InsideSocket | None:
        """Return what another engine has opened for the inside socket `target`, as far as it is known; the driver is
        asked about it now and then. None: nothing."""
        inside = self._found.get(target)
        if inside is None or (inside.state is not SocketState.OPENING and inside.ends <= now):
            if inside is not None:
                self._return(inside)
            elif len(self._found) >= MOST_FOUND:
                self._return(next(iter(self._found.values())))
            self._last_ref += 1
            inside = InsideSocket(self._last_ref, target, None, SIGNALLING, borrowed=True)
            self._refs[inside.ref] = self._found[target] = inside
            self.out.append(FindSocket(inside.ref, target))
        return None if inside.state is SocketState.REFUSED else inside

    def _return(self, inside: InsideSocket) -> None:
        self._hide(inside)
        del self._refs[inside.ref]
        del self._found[inside.target]

    def publish(self, target: Endpoint, public: Endpoint) -> None:
        """Note that the inside socket `target` has this public endpoint without anybody opening it. It never ends."""
        inside = InsideSocket(0, target, None, SIGNALLING, SocketState.OPEN, public)
        self._targets[target] = inside
        self._publics[public] = inside, target

    def restore(self, inside: InsideSocket, now: float) -> None:
        """Restore a socket that is open. The driver is asked about each restored socket soon, but not about all at
        once."""
        self._last_ref = max(self._last_ref, inside.ref)
        self._refs[inside.ref] = self._targets[inside.target] = inside
        self._beside(inside)
        self._show(inside)
        soon = now + 1.0 + inside.ref % 100 / 10
        self._refresh_at(inside, min(soon, max(now, inside.ends - 1.0)))
        self.touch(inside)

    def touch(self, inside: InsideSocket) -> None:
        """Note that a socket has changed."""
        if self.changed is not None:
            self.changed.add(inside.ref)

    def want(
        self,
        target: Endpoint,
        second: int | None,
        reason: str,
        claim: Claim,
        now: float,
        until: float,
        peers: Peers = (),
    ) -> InsideSocket:
        """Return the socket `target` with this claim on it; a pinhole is opened if there is none. One for media may be
        the one whose `second` it is.

        A `second` that has a port already is not opened: some phones use ports that follow each other, for two streams
        or calls, whatever RTP says of the port above.
        """
        inside = self._targets.get(target)
        if inside is None and reason != SIGNALLING:
            beside = self._seconds.get(target)
            inside = beside if beside is not None and beside.state is not SocketState.REFUSED else None
        if inside is None:
            if second is not None and self._is_in_use(Endpoint(target.host, second)):
                second = None
            self._last_ref += 1
            inside = InsideSocket(self._last_ref, target, second, reason)
            self._refs[inside.ref] = self._targets[target] = inside
            self._beside(inside)
            inside.claims[claim] = (peers, until)
            inside.peers = _peers(inside)
            ttl = min(TTL, until - now)
            inside.ends = now + ttl
            self.out.append(OpenConversation(inside.ref, target, second, inside.peers, ttl, reason))
            self._refresh_at(inside, now + ttl / 2)
        else:
            self.claim(inside, claim, now, until, peers)
        return inside

    def _is_in_use(self, socket: Endpoint) -> bool:
        return socket in self._targets or socket in self._seconds

    def _beside(self, inside: InsideSocket) -> None:
        if inside.second is not None:
            self._seconds[Endpoint(inside.target.host, inside.second)] = inside

    def _leave_alone(self, inside: InsideSocket) -> None:
        """Forget the port beside its target."""
        if inside.second is not None:
            self._seconds.pop(Endpoint(inside.target.host, inside.second), None)

    def claim(self, inside: InsideSocket, claim: Claim, now: float, until: float, peers: Peers = ()) -> None:
        """Let `peers` in by `claim` until that time, in place of what the claim said before. A fixed socket needs
        none."""
        if inside.ref == 0 or inside.borrowed:
            return
        before = inside.claims.get(claim)
        inside.claims[claim] = (peers, until)
        self.touch(inside)
        if before is None and until < inside.due:
            heapq.heappush(self._timers, (until, inside.ref))
        if before is None or before[0] != peers:
            self._changed(inside, now)

    def drop(self, inside: InsideSocket, claim: Claim, now: float) -> None:
        """Remove a claim. Without any claim the pinhole is closed."""
        if inside.claims.pop(claim, None) is not None:
            self._changed(inside, now)

    def reopen(self, ref: int, now: float) -> None:
        """Close `ref` and ask for another public endpoint, because its address is no longer one of this router's."""
        inside = self._refs.get(ref)
        if inside is None or inside.state is not SocketState.OPEN:
            return
        self._hide(inside)
        inside.state = SocketState.OPENING
        inside.show_as(None)
        self.out.append(ClosePinhole(ref))
        self._ask(inside, now)
        self.touch(inside)

    def _ask(self, inside: InsideSocket, now: float) -> None:
        self.out.append(
            OpenConversation(
                inside.ref,
                inside.target,
                inside.second,
                inside.peers,
                max(inside.ends - now, 1.0),
                inside.reason,
            )
        )

    def opened(self, ref: int, public: Endpoint, now: float) -> None:
        """The driver opened `ref`. If nothing claims it any more, it is closed."""
        inside = self._refs.get(ref)
        if inside is not None and inside.borrowed:
            inside.ends = now + FOUND_FOR
        elif inside is None or inside.state is SocketState.REFUSED:
            self.out.append(ClosePinhole(ref))
            return
        inside.state = SocketState.OPEN
        inside.show_as(public)
        self._show(inside)
        self.touch(inside)

    def refused(self, ref: int, rule: str, now: float) -> None:
        """The driver did not open `ref`, or lost it. If it was for two ports, the first one is asked for alone, because
        media without RTCP are better than none."""
        if inside := self._refs.get(ref):
            self._hide(inside)
            if inside.borrowed:
                inside.state, inside.ends = SocketState.REFUSED, now + FOUND_FOR
                return
            if rule in (PORT, TAKEN) and inside.second is not None and inside.state is SocketState.OPENING:
                self._leave_alone(inside)
                inside.second = None
                self._ask(inside, now)
                return
            self.touch(inside)
            inside.state = SocketState.REFUSED
            inside.ends = now + REFUSED_FOR
            self._refresh_at(inside, inside.ends)

    def deadline(self) -> float:
        """Return when `tick` has something to do; infinity if there is nothing."""
        return self._timers[0][0] if self._timers else math.inf

    def tick(self, now: float) -> None:
        """Refresh what is still needed, and close what is not."""
        while self._timers and self._timers[0][0] <= now:
            at, ref = heapq.heappop(self._timers)
            inside = self._refs.get(ref)
            if inside is None:
                continue
            if inside.state is SocketState.REFUSED:
                if inside.ends <= now:
                    self._forget(inside)
                continue
            over = [claim for claim, (_, until) in inside.claims.items() if until <= now]
            for claim in over:
                del inside.claims[claim]
            if over or at == inside.due:
                self._changed(inside, now, refresh=at == inside.due)

    def _changed(self, inside: InsideSocket, now: float, refresh: bool = False) -> None:
        if inside.state is SocketState.REFUSED:
            return
        self.touch(inside)
        if not inside.claims:
            self._forget(inside)
            self.out.append(ClosePinhole(inside.ref))
            return
        peers = _peers(inside)
        ttl = min(TTL, max(until for _, until in inside.claims.values()) - now)
        ends = now + ttl
        if peers != inside.peers or (refresh and ends > inside.ends):
            inside.peers = peers
            lasts = not refresh and inside.ends <= ends <= inside.ends + SLACK
            if not lasts:  # its time is part of the change: dearer, as all of it must be written anew
                inside.ends = max(ends, now + 1.0)
                refresh = True
            elif (soonest := min(until for _, until in inside.claims.values())) < inside.due:
                heapq.heappush(self._timers, (soonest, inside.ref))
            self.out.append(UpdateConversation(inside.ref, peers, None if lasts else max(ttl, 1.0)))
        if refresh:
            # A claim may end before the others: look again then, for its peers are to be cut off.
            soonest = min(until for _, until in inside.claims.values())
            due = now + max(1.0, (inside.ends - now) / 2)
            self._refresh_at(inside, min(due, max(soonest, now + 1.0)))

    def _refresh_at(self, inside: InsideSocket, at: float) -> None:
        inside.due = at
        heapq.heappush(self._timers, (at, inside.ref))

    def _show(self, inside: InsideSocket) -> None:
        public = inside.public
        assert public is not None
        self._publics[public] = inside, inside.target
        if inside.second is not None and public.port < 65535:
            beside = Endpoint(inside.target.host, inside.second)
            self._publics[Endpoint(public.host, public.port + 1)] = inside, beside

    def _hide(self, inside: InsideSocket) -> None:
        if public := inside.public:
            self._publics.pop(public, None)
            if inside.second is not None and public.port < 65535:
                self._publics.pop(Endpoint(public.host, public.port + 1), None)

    def _forget(self, inside: InsideSocket) -> None:
        self.touch(inside)
        self._hide(inside)
        self._leave_alone(inside)
        del self._refs[inside.ref]
        del self._targets[inside.target]


def _peers(inside: InsideSocket) -> Peers:
    found: dict[str, None] = {}
    for peers, _ in inside.claims.values():
        if peers is None:
            return None
        found.update(dict.fromkeys(peers))
    return tuple(sorted(found)[:MOST_PEERS])

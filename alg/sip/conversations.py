"""The inside sockets that have a public port, who asks for it and until when."""

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
PORT = "port"  # the rule of a port that nobody gets
REFUSED_FOR = 10.0  # seconds before a socket that was refused is asked for again
FOUND_FOR = 60.0  # seconds before somebody else's socket is asked about again
MOST_FOUND = 64
MOST_PEERS = 8
MOST_SPEAKERS = 8  # sockets of the client that have named one socket

Peers = tuple[str, ...] | None
Claim = tuple[str, tuple[str | bytes, ...]]  # its kind, and what it belongs to


class State(Enum):
    """What is known of a conversation."""

    OPENING = "opening"
    OPEN = "open"
    REFUSED = "refused"


@dataclass(slots=True)
class Conversation:
    """An inside socket `target` (and `second`, a port beside it) and its public endpoint, once it is `OPEN`.

    `spelled`: how the client writes it ("via", "uri"), for the way back; `speakers`: from which other sockets of its.
    `claims`: who needs it, with the peers that each lets in and the time until which it is needed.
    """

    ref: int
    target: Endpoint
    second: int | None
    reason: str
    state: State = State.OPENING
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
        """The client's socket `socket` has told somebody of this one."""
        if socket != self.target and socket not in self.speakers:
            self.speakers = [*self.speakers[1 - MOST_SPEAKERS :], socket]

    def is_of(self, socket: Endpoint) -> bool:
        """Whether this is the inside socket `socket`, or one that it has named as its own."""
        return socket == self.target or socket in self.speakers

    def show_as(self, public: Endpoint | None) -> None:
        """From now on `public` is what may be advertised."""
        self.public = public
        self.written = b"" if public is None or public == self.target else str(public).encode()


Commands = OpenConversation | UpdateConversation | ClosePinhole | FindSocket


class Conversations:
    """All conversations of an engine. What the driver must do is put into `out`, which its owner empties; the numbers
    of those that change into `changed`, if somebody wants to know."""

    def __init__(self) -> None:
        self.out: list[Commands] = []
        self.changed: set[int] | None = None
        self._refs: dict[int, Conversation] = {}
        self._targets: dict[Endpoint, Conversation] = {}
        self._publics: dict[Endpoint, tuple[Conversation, Endpoint]] = {}
        self._stream: Conversation | None = None
        self._found: dict[Endpoint, Conversation] = {}
        self._timers: list[tuple[float, int]] = []
        self._last_ref = 0

    def __len__(self) -> int:
        return len(self._refs)

    def all(self) -> list[Conversation]:
        return list(self._refs.values())

    def of(self, target: Endpoint) -> Conversation | None:
        """The conversation of an inside socket that speaks SIP; of one that was fixed, that one."""
        if self._stream is not None and self._stream.target == target:
            return self._stream
        return self._targets.get(target)

    def is_fixed(self, conversation: Conversation | None) -> bool:
        """Whether it is the one that was fixed: whatever its client names, it is reached there."""
        return conversation is not None and conversation is self._stream

    def by_ref(self, ref: int) -> Conversation | None:
        """The conversation that the driver knows by this number."""
        return self._refs.get(ref)

    def behind(self, public: Endpoint) -> tuple[Conversation, Endpoint] | None:
        """What is advertised as `public`, a place where SIP is spoken, and the inside socket behind that port."""
        if self._stream is not None and self._stream.public == public:
            return self._stream, self._stream.target
        return self._publics.get(public)

    def media_behind(self, public: Endpoint) -> tuple[Conversation, Endpoint] | None:
        """The open conversation that is advertised as `public` for media, and the inside socket behind that port."""
        found = self._publics.get(public)
        return found if found is not None and found[0].reason != SIGNALLING else None

    def fix(self, target: Endpoint, public: Endpoint) -> Conversation:
        """A conversation that is there without anybody opening it: a TCP connection, or the socket of a SOCKS
        association. It never ends.

        A UDP port of the same number that media use, inside or outside, is another one.
        """
        self._stream = Conversation(0, target, None, SIGNALLING, State.OPEN, public)
        return self._stream

    def find(self, target: Endpoint, now: float) -> Conversation | None:
        """The conversation that another engine has for the inside socket `target`, as far as is known; it is asked
        about from time to time. None: there is none."""
        conversation = self._found.get(target)
        if conversation is None or (conversation.state is not State.OPENING and conversation.ends <= now):
            if conversation is not None:
                self._return(conversation)
            elif len(self._found) >= MOST_FOUND:
                self._return(next(iter(self._found.values())))
            self._last_ref += 1
            conversation = Conversation(self._last_ref, target, None, SIGNALLING, borrowed=True)
            self._refs[conversation.ref] = self._found[target] = conversation
            self.out.append(FindSocket(conversation.ref, target))
        return None if conversation.state is State.REFUSED else conversation

    def _return(self, conversation: Conversation) -> None:
        self._hide(conversation)
        del self._refs[conversation.ref]
        del self._found[conversation.target]

    def publish(self, target: Endpoint, public: Endpoint) -> None:
        """The inside socket `target` has this public endpoint, whether anybody opens it or not. It never ends."""
        conversation = Conversation(0, target, None, SIGNALLING, State.OPEN, public)
        self._targets[target] = conversation
        self._publics[public] = conversation, target

    def restore(self, conversation: Conversation, now: float) -> None:
        """Put back one that is open. The driver is asked about it soon, and not about all of them at once."""
        self._last_ref = max(self._last_ref, conversation.ref)
        self._refs[conversation.ref] = self._targets[conversation.target] = conversation
        self._show(conversation)
        soon = now + 1.0 + conversation.ref % 100 / 10
        self._refresh_at(conversation, min(soon, max(now, conversation.ends - 1.0)))
        self.touch(conversation)

    def touch(self, conversation: Conversation) -> None:
        """It has changed."""
        if self.changed is not None:
            self.changed.add(conversation.ref)

    def want(
        self,
        target: Endpoint,
        second: int | None,
        reason: str,
        claim: Claim,
        now: float,
        until: float,
        peers: Peers = (),
    ) -> Conversation:
        """The conversation of `target`, opened if there is none, with this claim on it."""
        conversation = self._targets.get(target)
        if conversation is None:
            self._last_ref += 1
            conversation = Conversation(self._last_ref, target, second, reason)
            self._refs[conversation.ref] = self._targets[target] = conversation
            conversation.claims[claim] = (peers, until)
            conversation.peers = _peers(conversation)
            ttl = min(TTL, until - now)
            conversation.ends = now + ttl
            self.out.append(OpenConversation(conversation.ref, target, second, conversation.peers, ttl, reason))
            self._refresh_at(conversation, now + ttl / 2)
        else:
            self.claim(conversation, claim, now, until, peers)
        return conversation

    def claim(self, conversation: Conversation, claim: Claim, now: float, until: float, peers: Peers = ()) -> None:
        """`claim` lets `peers` in until that time; what it said before is void. One that was fixed needs none."""
        if conversation.ref == 0 or conversation.borrowed:
            return
        before = conversation.claims.get(claim)
        conversation.claims[claim] = (peers, until)
        self.touch(conversation)
        if before is None and until < conversation.due:
            heapq.heappush(self._timers, (until, conversation.ref))
        if before is None or before[0] != peers:
            self._changed(conversation, now)

    def drop(self, conversation: Conversation, claim: Claim, now: float) -> None:
        """`claim` is void. Without any claim the conversation is closed."""
        if conversation.claims.pop(claim, None) is not None:
            self._changed(conversation, now)

    def reopen(self, ref: int, now: float) -> None:
        """The public endpoint of `ref` is this router's no more: close it, and ask for another one."""
        conversation = self._refs.get(ref)
        if conversation is None or conversation.state is not State.OPEN:
            return
        self._hide(conversation)
        conversation.state = State.OPENING
        conversation.show_as(None)
        self.out.append(ClosePinhole(ref))
        self._ask(conversation, now)
        self.touch(conversation)

    def _ask(self, conversation: Conversation, now: float) -> None:
        self.out.append(
            OpenConversation(
                conversation.ref,
                conversation.target,
                conversation.second,
                conversation.peers,
                max(conversation.ends - now, 1.0),
                conversation.reason,
            )
        )

    def opened(self, ref: int, public: Endpoint, now: float) -> None:
        """The driver opened `ref`; one that nobody wants any more is closed."""
        conversation = self._refs.get(ref)
        if conversation is not None and conversation.borrowed:
            conversation.ends = now + FOUND_FOR
        elif conversation is None or conversation.state is State.REFUSED:
            self.out.append(ClosePinhole(ref))
            return
        conversation.state = State.OPEN
        conversation.show_as(public)
        self._show(conversation)
        self.touch(conversation)

    def refused(self, ref: int, rule: str, now: float) -> None:
        """The driver did not open `ref`, or lost it. Where it was for one of two ports, the first is asked for alone:
        media without RTCP are better than none."""
        if conversation := self._refs.get(ref):
            self._hide(conversation)
            if conversation.borrowed:
                conversation.state, conversation.ends = State.REFUSED, now + FOUND_FOR
                return
            if rule == PORT and conversation.second is not None and conversation.state is State.OPENING:
                conversation.second = None
                self._ask(conversation, now)
                return
            self.touch(conversation)
            conversation.state = State.REFUSED
            conversation.ends = now + REFUSED_FOR
            self._refresh_at(conversation, conversation.ends)

    def deadline(self) -> float:
        """When `tick` has something to do; infinity: not as things are."""
        return self._timers[0][0] if self._timers else math.inf

    def tick(self, now: float) -> None:
        """Refresh what is still needed, close what is not."""
        while self._timers and self._timers[0][0] <= now:
            at, ref = heapq.heappop(self._timers)
            conversation = self._refs.get(ref)
            if conversation is None:
                continue
            if conversation.state is State.REFUSED:
                if conversation.ends <= now:
                    self._forget(conversation)
                continue
            over = [claim for claim, (_, until) in conversation.claims.items() if until <= now]
            for claim in over:
                del conversation.claims[claim]
            if over or at == conversation.due:
                self._changed(conversation, now, refresh=at == conversation.due)

    def _changed(self, conversation: Conversation, now: float, refresh: bool = False) -> None:
        if conversation.state is State.REFUSED:
            return
        self.touch(conversation)
        if not conversation.claims:
            self._forget(conversation)
            self.out.append(ClosePinhole(conversation.ref))
            return
        peers = _peers(conversation)
        ttl = min(TTL, max(until for _, until in conversation.claims.values()) - now)
        ends = now + ttl
        if peers != conversation.peers or (refresh and ends > conversation.ends):
            conversation.peers = peers
            lasts = not refresh and conversation.ends <= ends <= conversation.ends + SLACK
            if not lasts:  # its time is part of the change: dearer, as all of it must be written anew
                conversation.ends = max(ends, now + 1.0)
                refresh = True
            elif (soonest := min(until for _, until in conversation.claims.values())) < conversation.due:
                heapq.heappush(self._timers, (soonest, conversation.ref))
            self.out.append(UpdateConversation(conversation.ref, peers, None if lasts else max(ttl, 1.0)))
        if refresh:
            # A claim may end before the others: look again then, for its peers are to be cut off.
            soonest = min(until for _, until in conversation.claims.values())
            due = now + max(1.0, (conversation.ends - now) / 2)
            self._refresh_at(conversation, min(due, max(soonest, now + 1.0)))

    def _refresh_at(self, conversation: Conversation, at: float) -> None:
        conversation.due = at
        heapq.heappush(self._timers, (at, conversation.ref))

    def _show(self, conversation: Conversation) -> None:
        public = conversation.public
        assert public is not None
        self._publics[public] = conversation, conversation.target
        if conversation.second is not None and public.port < 65535:
            beside = Endpoint(conversation.target.host, conversation.second)
            self._publics[Endpoint(public.host, public.port + 1)] = conversation, beside

    def _hide(self, conversation: Conversation) -> None:
        if public := conversation.public:
            self._publics.pop(public, None)
            if conversation.second is not None and public.port < 65535:
                self._publics.pop(Endpoint(public.host, public.port + 1), None)

    def _forget(self, conversation: Conversation) -> None:
        self.touch(conversation)
        self._hide(conversation)
        del self._refs[conversation.ref]
        del self._targets[conversation.target]


def _peers(conversation: Conversation) -> Peers:
    found: dict[str, None] = {}
    for peers, _ in conversation.claims.values():
        if peers is None:
            return None
        found.update(dict.fromkeys(peers))
    return tuple(sorted(found)[:MOST_PEERS])

"""One message at a time, from whichever side: what is edited, what it opens and closes. Both drivers' faces share it.

Codes of notes: sip.ice, sip.public, sip.outbound, sip.tls, sip.repaired (stood down), sip.third-party, sip.low-port,
sip.media-transport, sip.sdp, sip.refused, sip.unanswered, sip.rate, sip.held, sip.calls, sip.trailing (not touched).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alg.address import Endpoint
from alg.api import Edit, Note, Side
from alg.datagrams import Release, StandDown
from alg.sip.bindings import Bindings, is_third_party
from alg.sip.calls import Call, Calls, turn
from alg.sip.conversations import Commands, Conversation, Conversations, State
from alg.sip.edits import Edits, advertise, describe, hairpin, own_places, restore, same_host
from alg.sip.journal import Changes, Record, TalkRecord, restore_all
from alg.sip.ladder import Rung, rung_of, unread_rung
from alg.sip.message import HostPort, Malformed, Message, parse
from alg.sip.options import SipOptions
from alg.sip.sdp import NOWHERE, Description, Media, find_sdp, is_held, read_sdp
from alg.sip.stand_down import reason_to_stand_down

HOLD = 2.0  # seconds that a message waits for its conversations at most
SIGNALLING = 180.0  # seconds that a client's socket keeps its port after its latest message
MOST_HELD = 1024
MOST_HELD_OF_CLIENT = 64
MOST_TALKS = 20000
LOWEST_PORT = 1024
NOTE_AGAIN = 60.0  # seconds before the same is said again

CoreCommand = Commands | Release | StandDown | Note


@dataclass(slots=True)
class Plan:
    """What an outbound message needs, and where."""

    places: list[tuple[str, HostPort, Conversation]] = field(default_factory=list)
    call: Call | None = None
    sdp: Description | None = None
    media: dict[int, Conversation] = field(default_factory=dict)

    def waits(self) -> set[int]:
        """The conversations that the message must wait for."""
        found = {wanted.ref for _, _, wanted in self.places if wanted.state is State.OPENING}
        if self.media:
            found.update(wanted.ref for wanted in self.media.values() if wanted.state is State.OPENING)
        return found

    def public(self) -> Endpoint | None:
        """What is advertised of the first conversation that has anything: of media, if there are any, for what the
        world sees of them may be another address than that of the connection or association that signals."""
        wanted = [*self.media.values(), *(conversation for _, _, conversation in self.places)]
        return next((conversation.public for conversation in wanted if conversation.public), None)


@dataclass(slots=True)
class Held:
    """A message of a client that waits for conversations, by their refs."""

    packet: int
    client: Endpoint
    server: Endpoint
    message: Message
    plan: Plan
    until: float
    waits: set[int]


class Core:
    """The state of SIP: of all clients (UDP) or of one TCP connection. `changes`: where what changes is noted."""

    def __init__(self, options: SipOptions, changes: Changes | None = None) -> None:
        self.conversations = Conversations()
        self.calls = Calls(self.conversations, options)
        self._options = options
        self.bindings = Bindings(self.conversations)
        self._stood_down: dict[tuple[Endpoint, str], str] = {}
        self._held: dict[int, Held] = {}
        self._noted: dict[tuple[str, str], float] = {}
        self._out: list[CoreCommand] = []
        self._changes = changes
        if changes is not None:
            self.conversations.changed, self.calls.changed = changes.conversations, changes.calls

    def restore(self, records: Sequence[Record], now: float) -> None:
        """Go on where another process was, as its records say."""
        restore_all(records, self.conversations, self.calls, now)
        self.bindings.restore()
        for record in records:
            if isinstance(record, TalkRecord) and not record.revoked:
                self._stood_down[record.client, record.server] = record.rule

    # --- in and out -------------------------------------------------------------------------------------------------

    def taken(self) -> Sequence[CoreCommand]:
        """The commands since the last time: conversations first, for what is released may count on them."""
        out = [*self.conversations.out, *self._out]
        self.conversations.out.clear()
        self._out.clear()
        return out

    def note(self, code: str, detail: str, now: float, client: Endpoint) -> None:
        """Say something, but not the same of the same client again and again."""
        key = (code, client.host)
        if self._noted.get(key, -math.inf) + NOTE_AGAIN > now:
            return
        if len(self._noted) >= MOST_TALKS:
            self._noted.clear()
        self._noted[key] = now
        self._out.append(Note(code, f"{client.host}: {detail}"))

    def release(self, packet: int, rung: Rung | None = None, edits: tuple[Edit, ...] = ()) -> None:
        self._out.append(Release(packet, edits, rung))

    def message(self, packet: int, side: Side, client: Endpoint, server: Endpoint, data: bytes, now: float) -> None:
        """Take `data`, which begins as a SIP message. It is released now or later."""
        try:
            message = parse(data)
            if message.end < len(data) and data[message.end :].strip():
                # Something behind the message (RFC 4475, 3.1.1.8): a reader may see another message there.
                self.note("sip.trailing", "bytes behind a message", now, client)
                self.release(packet, rung_of(message))
            elif side is Side.CLIENT:
                self._outbound(packet, client, server, message, now)
            else:
                self._inbound(packet, client, server, message, now)
        except Malformed:
            self.release(packet, unread_rung(data))

    def opened(self, ref: int, public: Endpoint, now: float) -> None:
        self.conversations.opened(ref, public, now)
        self._settled(ref, now)

    def refused(self, ref: int, rule: str, now: float) -> None:
        conversation = self.conversations.by_ref(ref)
        if conversation:
            self.note("sip.refused", f"{conversation.target}: {rule}", now, conversation.target)
        self.conversations.refused(ref, now)
        self._settled(ref, now)

    def active(self, ref: int, packets: tuple[int, int], now: float) -> None:
        if conversation := self.conversations.by_ref(ref):
            self.calls.active(conversation, packets, now)

    def tick(self, now: float) -> None:
        for held in [held for held in self._held.values() if held.until <= now]:
            del self._held[held.packet]
            self.note("sip.unanswered", "no answer about a conversation", now, held.client)
            self.release(held.packet, rung_of(held.message))
        self.calls.tick(now)
        self.conversations.tick(now)

    def deadline(self) -> float | None:
        soonest = min(self.calls.deadline(), self.conversations.deadline())
        if self._held:
            soonest = min(soonest, next(iter(self._held.values())).until)  # in the order in which they came
        return None if soonest == math.inf else soonest

    # --- from the client --------------------------------------------------------------------------------------------

    def _outbound(self, packet: int, client: Endpoint, server: Endpoint, message: Message, now: float) -> None:
        if self._stood_down and (client, server.host) in self._stood_down:
            self.release(packet, rung_of(message))
            return
        if rule := reason_to_stand_down(message, client, server.host, self.conversations, self._options.stand_down):
            self._stand_down(client, server, rule, now)
            self.release(packet, rung_of(message))
            return
        if message.method == b"REGISTER" and message.is_request and is_third_party(message):
            self.note("sip.third-party", "a REGISTER for somebody else", now, client)
            self.release(packet, rung_of(message))
            return
        plan = self._plan(client, server, message, now)
        waits = plan.waits()
        if not waits:
            self._send(packet, client, server, message, plan, now)
        elif len(self._held) >= MOST_HELD or self._held_of(client) >= MOST_HELD_OF_CLIENT:
            self.note("sip.held", "too many messages wait", now, client)
            self.release(packet, rung_of(message))
        else:
            self._held[packet] = Held(packet, client, server, message, plan, now + HOLD, waits)

    def _held_of(self, client: Endpoint) -> int:
        return sum(held.client.host == client.host for held in self._held.values())

    def _stand_down(self, client: Endpoint, server: Endpoint, rule: str, now: float) -> None:
        if len(self._stood_down) >= MOST_TALKS:
            oldest = next(iter(self._stood_down))
            del self._stood_down[oldest]
            if self._changes is not None:
                self._changes.talk(*oldest, None, revoked=False)
        self._stood_down[client, server.host] = rule
        if self._changes is not None:
            self._changes.talk(client, server.host, rule, revoked=False)
        self._out.append(StandDown(client, server.host, rule))
        self.note(rule, f"stood down towards {server.host}", now, client)

    def _settled(self, ref: int, now: float) -> None:
        """Release what waited for `ref` and now waits for nothing."""
        for held in list(self._held.values()):
            held.waits.discard(ref)
            if not held.waits:
                del self._held[held.packet]
                self._send(held.packet, held.client, held.server, held.message, held.plan, now)

    def _plan(self, client: Endpoint, server: Endpoint, message: Message, now: float) -> Plan:
        """Find out what the message needs, and ask for it. The same again for the same message."""
        plan = Plan()
        source = self.conversations.of(client)
        for name, place in own_places(message, client.host, self.conversations.is_fixed(source)):
            wanted = self._signalling(source, name, place, client, server, message, now)
            if wanted:
                plan.places.append((name, place, wanted))
        if message.method == b"INVITE" and message.is_request:
            plan.call = self.calls.begin(Side.CLIENT, client, server.host, message, now)
            if plan.call is None:
                self.note("sip.calls", "too many calls", now, client)
        else:
            plan.call = self.calls.find(client, message)
        if plan.call:
            self._plan_media(plan, plan.call, client, message, now)
        return plan

    def _signalling(
        self,
        source: Conversation | None,
        name: str,
        place: HostPort,
        client: Endpoint,
        server: Endpoint,
        message: Message,
        now: float,
    ) -> Conversation | None:
        """The conversation that a place of the client's stands for; `source`: the one of where it speaks, if any."""
        if source and self.conversations.is_fixed(source):
            return source  # a TCP connection: whatever port the client names, it is reached through it
        port = place.port or 5060
        target = client if port == client.port else Endpoint(client.host, port)
        if target != client and name == "via" and message.param(message.vias()[0].params, b"rport"):
            target = client  # the answer comes to where the request came from (RFC 3581)
        if target.port < LOWEST_PORT:
            self.note("sip.low-port", str(target), now, client)
            return None
        # A phone that sends from one port and listens at SIP's: its answers must get there.
        peers = (server.host,) if name == "via" and target != client and target.port == 5060 else ()
        claim = ("signalling", peers)
        if source and target is client:
            self.conversations.claim(source, claim, now, now + SIGNALLING, peers)
            return source
        return self.conversations.want(target, None, "sip.signalling", claim, now, now + SIGNALLING, peers)

    def _plan_media(self, plan: Plan, call: Call, client: Endpoint, message: Message, now: float) -> None:
        try:
            span = find_sdp(message)
            sdp = read_sdp(message.data, *span) if span else None
        except Malformed as wrong:
            self.note("sip.sdp", str(wrong), now, client)
            return
        if sdp is None:
            return
        if sdp.ice:
            self.note("sip.ice", "candidates in a session description", now, client)
            return
        mine = {index: line for index, line in enumerate(sdp.media) if line.port and _is_own(line, client.host)}
        for line in mine.values():
            if not line.datagrams or line.port < LOWEST_PORT:
                self.note(
                    "sip.low-port" if line.datagrams else "sip.media-transport",
                    f"{line.kind} {line.port} {line.protocol.decode('latin-1')}",
                    now,
                    client,
                )
                return
        peers = self.calls.peers(call)
        for index, line in mine.items():
            second = None
            if line.pair:
                second = line.rtcp_port if line.rtcp_port not in (None, line.port) else line.port + 1
            reason = "sip.rtp" if line.pair else "sip.udptl"
            target = Endpoint(client.host, line.port)
            plan.media[index] = wanted = self.conversations.want(
                target, second if second and second < 65536 else None, reason, call.claim, now, math.inf, peers
            )
            call.kinds[wanted.ref] = line.kind
        call.on_hold = is_held(mine.values())
        self.calls.client_media(call, turn(Side.CLIENT, message), list(plan.media.values()), now)
        plan.sdp = sdp

    def _send(self, packet: int, client: Endpoint, server: Endpoint, message: Message, plan: Plan, now: float) -> None:
        edits = Edits(message)
        for name, place, conversation in plan.places:
            if conversation.state is State.OPEN:
                advertise(edits, message, name, place, conversation)
                self.conversations.touch(conversation)
        if plan.sdp and all(wanted.state is State.OPEN for wanted in plan.media.values()):
            public = plan.public()
            if public:
                describe(edits, message, plan.sdp, client.host, public.host, plan.media)
        if message.is_request and message.method == b"REGISTER":
            self.bindings.register(message, client, server.host, now)
        elif message.is_request and message.method == b"SUBSCRIBE":
            self.bindings.subscribe(message, client, server.host, now)
        if plan.call:
            self._follow(plan.call, Side.CLIENT, client, server, message, now)
        self.release(packet, rung_of(message), edits.done())

    # --- from the server --------------------------------------------------------------------------------------------

    def _inbound(self, packet: int, client: Endpoint, server: Endpoint, message: Message, now: float) -> None:
        edits = Edits(message)
        if not self._stood_down or (client, server.host) not in self._stood_down:
            restore(edits, message, client, self.conversations)
            if message.method in (b"REGISTER", b"SUBSCRIBE") and not message.is_request:
                self.bindings.answered(message, client, server.host, now)
            if message.method == b"INVITE" and message.is_request:
                call = self.calls.begin(Side.SERVER, client, server.host, message, now)
            else:
                call = self.calls.find(client, message)
            if call and server.host in call.servers:
                self._far(edits, call, client, message, now)
                self._follow(call, Side.SERVER, client, server, message, now)
        self.release(packet, rung_of(message), edits.done())

    def _far(self, edits: Edits, call: Call, client: Endpoint, message: Message, now: float) -> None:
        try:
            span = find_sdp(message)
            sdp = read_sdp(message.data, *span) if span else None
        except Malformed as wrong:
            self.note("sip.sdp", str(wrong), now, client)
            return
        if sdp:
            call.far_on_hold = is_held(sdp.media)
        if sdp and (sdp.ice or not hairpin(edits, message, sdp, self.conversations)):
            self.calls.far_media(call, Side.SERVER, message, sdp, now)

    def _follow(self, call: Call, side: Side, client: Endpoint, server: Endpoint, message: Message, now: float) -> None:
        self.calls.heard(call, side, server.host, message, now)
        if call.state != "confirmed" or self.calls.find(client, message) is not call:
            return
        source = call.signalling or self.conversations.of(client)
        if source:
            # As long as the call lives its servers reach the client, however long nobody spoke.
            call.signalling = source
            self.conversations.claim(source, call.claim, now, math.inf, tuple(sorted(call.servers)))


def _is_own(line: Media, host: str) -> bool:
    """Whether media are to come to `host`; also those on hold in the old way (RFC 3264, 8.4: 0.0.0.0)."""
    if line.connection is None:
        return False
    return line.connection.host in NOWHERE or same_host(line.connection.host, host)

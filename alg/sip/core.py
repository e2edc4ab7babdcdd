"""Handles one message at a time, from either side: what is edited, what it opens and closes. Shared by the modules for
UDP and for TCP.

Codes of notes: sip.ice, sip.public, sip.outbound, sip.tls, sip.repaired (stood down), sip.third-party, sip.low-port,
sip.media-transport, sip.sdp, sip.refused, sip.unanswered, sip.rate, sip.held, sip.calls, sip.unread (not touched).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alg.address import Endpoint
from alg.api import Edit, Note, Side
from alg.datagrams import Release, RevokeConversation, StandDown
from alg.sip.bindings import Bindings, is_third_party
from alg.sip.call import Call, CallState
from alg.sip.calls import Calls, request_of
from alg.sip.edits import Edits, advertise, describe, hairpin, is_over_udp, own_places, restore, same_host
from alg.sip.ladder import SipRung, rung_of, unread_rung
from alg.sip.message import HostPort, Message, parse
from alg.sip.options import SipOptions
from alg.sip.peers import Peers
from alg.sip.records import Record, TalkRecord, UnsavedChanges, restore_all
from alg.sip.sdp import find_sdp
from alg.sip.sockets import Commands, InsideSocket, InsideSockets, SocketState
from alg.sip.stand_down import WHOLLY, reason_to_stand_down
from alg.text.header import Malformed
from alg.text.sdp import ON_HOLD, Description, Media, is_held, read_sdp

HOLD = 2.0  # seconds that a message waits for its sockets to be opened at most
SIGNALLING = 180.0  # seconds that a client's socket keeps its port after its latest message
MOST_HELD = 1024
MOST_HELD_OF_CLIENT = MOST_HELD // 2
MOST_NOTED = 20000
LOWEST_PORT = 1024
NOTE_AGAIN = 60.0  # seconds before the same is said again
_NOTHING = b"\r\n\t \0"  # behind a message in a datagram: no other message

CoreCommand = Commands | Release | StandDown | RevokeConversation | Note


class Heard:
    """A message and how it came. `packet` is the driver's number for it, `side` sent it, `client` is the inside socket,
    `server` the outside one."""

    __slots__ = ("client", "message", "now", "packet", "server", "side")

    def __init__(
        self, packet: int, side: Side, client: Endpoint, server: Endpoint, message: Message, now: float
    ) -> None:
        self.packet = packet
        self.side = side
        self.client = client
        self.server = server
        self.message = message
        self.now = now

    def at(self, now: float) -> Heard:
        """Return the same at another time."""
        return Heard(self.packet, self.side, self.client, self.server, self.message, now)


@dataclass(slots=True)
class SocketPlan:
    """The sockets that an outbound message needs, and where they stand in it. `edits_signalling`: whether signalling is
    edited, or the client's own text stays."""

    edits_signalling: bool = True
    places: list[tuple[str, HostPort, InsideSocket]] = field(default_factory=list)
    call: Call | None = None
    sdp: Description | None = None
    media: dict[int, InsideSocket] = field(default_factory=dict)

    def waits(self) -> set[int]:
        """The numbers of the sockets for which the message must wait."""
        found = {wanted.ref for _, _, wanted in self.places if wanted.state is SocketState.OPENING}
        if self.media:
            found.update(wanted.ref for wanted in self.media.values() if wanted.state is SocketState.OPENING)
        return found

    def public(self) -> Endpoint | None:
        """Return the public endpoint of the first socket that has one. Sockets of media come first, because their
        public address may differ from that of the connection or association that carries the signalling."""
        wanted = [*self.media.values(), *(inside for _, _, inside in self.places)]
        return next((inside.public for inside in wanted if inside.public), None)


@dataclass(slots=True)
class HeldMessage:
    """A client's message that waits for sockets to be opened, by their numbers."""

    heard: Heard
    plan: SocketPlan
    until: float
    waits: set[int]


class Core:
    """The state of SIP: of all clients (UDP) or of one TCP connection (`streams`). `changes`: where changes are
    recorded."""

    def __init__(self, options: SipOptions, changes: UnsavedChanges | None = None, streams: bool = False) -> None:
        self.sockets = InsideSockets()
        self.calls = Calls(self.sockets, options)
        self.peers = Peers(changes)
        self.unread = 0  # messages that passed unread, since the start
        self._options = options
        self._streams = streams
        self.bindings = Bindings(self.sockets)
        self._held: dict[int, HeldMessage] = {}
        self._held_of: dict[str, int] = {}  # by the client's address, how many
        self._noted: dict[tuple[str, str], float] = {}
        self._out: list[CoreCommand] = []
        if changes is not None:
            self.sockets.changed, self.calls.changed = changes.sockets, changes.calls

    def restore(self, records: Sequence[Record], now: float) -> None:
        """Continue from the records of another process."""
        restore_all(records, self.sockets, self.calls, now)
        self.bindings.restore()
        for record in records:
            if isinstance(record, TalkRecord):
                self.peers.restore(record.client, record.server, record.rule, record.until)

    # --- in and out -------------------------------------------------------------------------------------------------

    def drain(self) -> Sequence[CoreCommand]:
        """Return the commands since the last call, pinholes first, because released messages may depend on them."""
        out = [*self.sockets.out, *self._out]
        self.sockets.out.clear()
        self._out.clear()
        return out

    def note(self, code: str, detail: str, now: float, client: Endpoint) -> None:
        """Report something, but not the same about the same client again and again."""
        self._say(code, client.host, f"{client.host}: {detail}", now)

    def unreadable(self, client: Endpoint, server: str, wrong: Malformed, now: float, code: str = "sip.unread") -> None:
        """Count a message between these two that is not read, or whose session description is not (`code`), and report
        it once a minute for each socket."""
        self.unread += 1
        why = f"{wrong.reason}, at byte {wrong.at}"
        self.peers.unread(client, server, why, now)
        self._say(code, str(client), f"{client}: {why}", now, unread=True)

    def _say(self, code: str, who: str, detail: str, now: float, unread: bool = False) -> None:
        key = (code, who)
        again = self._noted.get(key, -math.inf) + NOTE_AGAIN > now
        if not again:
            if len(self._noted) >= MOST_NOTED:
                self._noted.clear()
            self._noted[key] = now
        self._out.append(Note(code, detail, again, unread))

    def revoke(self, client: Endpoint, server: str, rule: str, now: float) -> None:
        """Let messages between these two pass unread for a while."""
        self.peers.revoke(client, server, rule, now)
        self._out.append(RevokeConversation(client, server, rule))

    def release(self, packet: int, rung: SipRung | None = None, edits: tuple[Edit, ...] = ()) -> None:
        self._out.append(Release(packet, edits, rung))

    def message(self, packet: int, side: Side, client: Endpoint, server: Endpoint, data: bytes, now: float) -> None:
        """Handle `data`, which begins as a SIP message. It is released now or later."""
        try:
            message = parse(data)
            if message.end < len(data) and data[message.end :].strip(_NOTHING):
                # A reader may see another message there (RFC 4475, 3.1.1.8).
                raise Malformed("bytes behind the message", message.end)
            heard = Heard(packet, side, client, server, message, now)
            if (side is Side.CLIENT) is message.is_request:
                message.via()  # the client's own has to be readable; the server's is not touched
            if side is Side.CLIENT:
                self._outbound(heard)
            else:
                self._inbound(heard)
        except Malformed as wrong:
            self.unreadable(client, server.host, wrong, now)
            self.release(packet, unread_rung(data))

    def opened(self, ref: int, public: Endpoint, now: float) -> None:
        self.sockets.opened(ref, public, now)
        self._settled(ref, now)

    def refused(self, ref: int, rule: str, now: float) -> None:
        inside = self.sockets.by_ref(ref)
        if inside and not inside.borrowed:
            self.note("sip.refused", f"{inside.target}: {rule}", now, inside.target)
            if inside.state is SocketState.OPEN:
                self.calls.lost(inside, now)
        self.sockets.refused(ref, rule, now)
        if inside is None or inside.state is SocketState.REFUSED:
            self._settled(ref, now)

    def active(self, ref: int, packets: tuple[int, int], now: float) -> None:
        if inside := self.sockets.by_ref(ref):
            self.calls.active(inside, packets, now)

    def tick(self, now: float) -> None:
        for held in [held for held in self._held.values() if held.until <= now]:
            self._let_go(held)
            self.note("sip.unanswered", "no answer about a conversation", now, held.heard.client)
            self.release(held.heard.packet, rung_of(held.heard.message))
        self.calls.tick(now)
        self.sockets.tick(now)

    def deadline(self) -> float | None:
        soonest = min(self.calls.deadline(), self.sockets.deadline())
        if self._held:
            soonest = min(soonest, next(iter(self._held.values())).until)  # in the order in which they came
        return None if soonest == math.inf else soonest

    # --- from the client --------------------------------------------------------------------------------------------

    def _outbound(self, heard: Heard) -> None:
        message, client, server = heard.message, heard.client, heard.server.host
        rule = self._standing(heard)
        if rule in WHOLLY:
            self.release(heard.packet, rung_of(message))
            return
        if message.method == b"REGISTER" and message.is_request and is_third_party(message):
            self.note("sip.third-party", "a REGISTER for somebody else", heard.now, client)
            self.release(heard.packet, rung_of(message))
            return
        plan = self._plan(heard, rule is None)
        waits = plan.waits()
        if not waits:
            self._send(heard, plan)
        elif len(self._held) >= MOST_HELD or self._held_of.get(client.host, 0) >= MOST_HELD_OF_CLIENT:
            self.note("sip.held", "too many messages wait", heard.now, client)
            self.release(heard.packet, rung_of(message))
        else:
            self._held[heard.packet] = HeldMessage(heard, plan, heard.now + HOLD, waits)
            self._held_of[client.host] = self._held_of.get(client.host, 0) + 1
        self.peers.seen(client, server, heard.now)

    def _standing(self, heard: Heard) -> str | None:
        """Return why the client and this server are left alone, from this message on. A REGISTER without such a reason
        ends a stand-down that the client itself had caused."""
        client, server, message = heard.client, heard.server.host, heard.message
        before = self.peers.rule(client, server)
        is_register = message.is_request and message.method == b"REGISTER"
        if before is not None and not is_register:
            return before
        rule = reason_to_stand_down(message, client, server, self.sockets, self._options.stand_down)
        if rule is None and before == "sip.outbound":
            return before  # the registrar's answer decides that anew
        if rule != before:
            self._stand(client, server, rule, heard.now)
        return rule

    def _stand(self, client: Endpoint, server: str, rule: str | None, now: float) -> None:
        self.peers.stand_down(client, server, rule, now)
        if rule is None:
            return
        self._out.append(StandDown(client, server, rule))
        self.note(rule, f"stood down towards {server}", now, client)

    def _settled(self, ref: int, now: float) -> None:
        """Release messages that waited for `ref` and now wait for nothing."""
        for held in list(self._held.values()):
            held.waits.discard(ref)
            if not held.waits:
                self._let_go(held)
                self._send(held.heard.at(now), held.plan)

    def _let_go(self, held: HeldMessage) -> None:
        del self._held[held.heard.packet]
        host = held.heard.client.host
        self._held_of[host] -= 1
        if not self._held_of[host]:
            del self._held_of[host]

    def _plan(self, heard: Heard, edits_signalling: bool) -> SocketPlan:
        """Find out which sockets the message needs, and ask for them. Asking again for the same message changes
        nothing."""
        plan = SocketPlan(edits_signalling)
        message, client = heard.message, heard.client
        source = self.sockets.of(client)
        for name, place in own_places(message, client.host, self.sockets.is_fixed(source)):
            wanted = self._signalling(heard, source, name, place)
            if wanted:
                plan.places.append((name, place, wanted))
        if message.method == b"INVITE" and message.is_request:
            plan.call = self.calls.begin(Side.CLIENT, client, heard.server.host, message, heard.now)
            if plan.call is None:
                self.note("sip.calls", "too many calls", heard.now, client)
        else:
            plan.call = self.calls.find(client, message)
        if plan.call:
            self._plan_media(heard, plan, plan.call)
        return plan

    def _signalling(self, heard: Heard, source: InsideSocket | None, name: str, place: HostPort) -> InsideSocket | None:
        """Return the socket that the client names in a place. `source`: the socket from which it sends, if that has a
        port."""
        client, now = heard.client, heard.now
        port = place.port or 5060
        if source and self.sockets.is_fixed(source):
            # A TCP connection: whatever port the client names, it is reached through it. But a request that went over
            # TCP for its length alone (RFC 3261, 18.1.1) has the contact where the client is reached over UDP.
            asks = self._streams and name == "contact" and is_over_udp(heard.message, place)
            found = self.sockets.find(Endpoint(client.host, port), now) if asks else None
            return found or source
        target = client if port == client.port else Endpoint(client.host, port)
        if target != client and name == "via" and heard.message.param(heard.message.via().params, b"rport"):
            target = client  # the answer comes to where the request came from (RFC 3581)
        if target.port < LOWEST_PORT:
            self.note("sip.low-port", str(target), now, client)
            return None
        # A phone that sends from one port and listens at SIP's: its answers must get there.
        peers = (heard.server.host,) if name == "via" and target != client and target.port == 5060 else ()
        claim = ("signalling", peers)
        if source and target is client:
            self.sockets.claim(source, claim, now, now + SIGNALLING, peers)
            return source
        return self.sockets.want(target, None, "sip.signalling", claim, now, now + SIGNALLING, peers)

    def _plan_media(self, heard: Heard, plan: SocketPlan, call: Call) -> None:
        sdp = self._description(heard)
        if sdp is None:
            return
        client, now = heard.client, heard.now
        if sdp.ice:
            self.note("sip.ice", "candidates in a session description", now, client)
            return
        mine = {index: line for index, line in enumerate(sdp.media) if line.port and _is_own(line, client.host)}
        for index, line in list(mine.items()):
            if line.datagrams and line.port >= LOWEST_PORT:
                continue
            code = "sip.low-port" if line.datagrams else "sip.media-transport"
            self.note(code, f"{line.kind} {line.port} {line.protocol.decode('latin-1')}", now, client)
            if line.datagrams or len(mine) == 1:
                return
            del mine[index]  # a stream over TCP beside others stays as it is
        peers = self.calls.peers(call)
        for index, line in mine.items():
            reason = "sip.rtp" if line.pair else "sip.udptl"
            target, second = Endpoint(client.host, line.port), _second(line)
            wanted = self.sockets.want(target, second, reason, call.claim, now, math.inf, peers)
            plan.media[index] = wanted
            call.kinds.setdefault(wanted.ref, line.kind)
        call.on_hold = is_held(mine.values())
        self.calls.client_media(call, request_of(Side.CLIENT, heard.message), list(plan.media.values()), now)
        plan.sdp = sdp

    def _description(self, heard: Heard) -> Description | None:
        """Return the session description of a message; None: it has none, or one that cannot be read."""
        try:
            span = find_sdp(heard.message)
            return read_sdp(heard.message.data, *span) if span else None
        except Malformed as wrong:
            self.unreadable(heard.client, heard.server.host, wrong, heard.now, "sip.sdp")
            return None

    def _send(self, heard: Heard, plan: SocketPlan) -> None:
        message, client, server = heard.message, heard.client, heard.server.host
        edits = Edits(message)
        if plan.edits_signalling:
            for name, place, wanted in plan.places:
                inside = wanted
                if wanted.borrowed and wanted.state is SocketState.REFUSED:
                    inside = self.sockets.of(client) or wanted
                if inside.state is SocketState.OPEN:
                    advertise(edits, message, client, name, place, inside)
                    self.sockets.touch(inside)
        if plan.sdp and all(wanted.state is SocketState.OPEN for wanted in plan.media.values()):
            public = plan.public()
            if public:
                describe(edits, message, plan.sdp, client.host, public.host, plan.media)
        if message.is_request and message.method == b"REGISTER":
            self.bindings.register(message, client, server, heard.now)
        elif message.is_request and message.method == b"SUBSCRIBE":
            self.bindings.subscribe(message, client, server, heard.now)
        if plan.call:
            self._follow(heard, plan.call)
        self.release(heard.packet, rung_of(message), edits.done())

    # --- from the server --------------------------------------------------------------------------------------------

    def _inbound(self, heard: Heard) -> None:
        message, client, server, now = heard.message, heard.client, heard.server.host, heard.now
        edits = Edits(message)
        rule = self.peers.rule(client, server)
        if rule not in WHOLLY:
            restore(edits, message, client, self.sockets)
            if message.method in (b"REGISTER", b"SUBSCRIBE") and not message.is_request:
                self.bindings.answered(message, client, server, now)
                self._agreed(heard, rule)
            if message.method == b"INVITE" and message.is_request:
                call = self.calls.begin(Side.SERVER, client, server, message, now)
            else:
                call = self.calls.find(client, message)
            if call and server in call.servers:
                self._far(edits, heard, call)
                self._follow(heard, call)
        self.release(heard.packet, rung_of(message), edits.done())

    def _agreed(self, heard: Heard, rule: str | None) -> None:
        """Handle a registrar that requires `outbound`: it keeps to the client's flow (RFC 5626, 6), whatever Contact
        says."""
        message = heard.message
        if message.method != b"REGISTER" or not 200 <= message.status < 300 or rule not in (None, "sip.outbound"):
            return
        agreed = "sip.outbound" if message.has_option("require", b"outbound") else None
        if agreed != rule:
            self._stand(heard.client, heard.server.host, agreed, heard.now)

    def _far(self, edits: Edits, heard: Heard, call: Call) -> None:
        sdp = self._description(heard)
        if sdp:
            call.far_on_hold = is_held(sdp.media)
        if sdp and (sdp.ice or not hairpin(edits, heard.message, sdp, self.sockets)):
            self.calls.far_media(call, Side.SERVER, heard.message, sdp, heard.now)

    def _follow(self, heard: Heard, call: Call) -> None:
        self.calls.heard(call, heard.side, heard.server.host, heard.message, heard.now)
        if call.state is not CallState.CONFIRMED or self.calls.find(heard.client, heard.message) is not call:
            return
        source = call.signalling or self.sockets.of(heard.client)
        if source:
            # As long as the call lasts its servers reach the client, however long it has been silent.
            call.signalling = source
            self.sockets.claim(source, call.claim, heard.now, math.inf, tuple(sorted(call.servers)))


def _is_own(line: Media, host: str) -> bool:
    """Whether media are to come to `host`, including those on hold in the old way (RFC 3264, 8.4: 0.0.0.0)."""
    if line.connection is None:
        return False
    return line.connection.host in ON_HOLD or same_host(line.connection.host, host)


def _second(line: Media) -> int | None:
    """Return the port of a stream's RTCP that is to be opened beside RTP's; None: there is none, or it is not
    opened."""
    if not line.pair:
        return None
    port = line.rtcp_port if line.rtcp_port not in (None, line.port) else line.port + 1
    return port if port is not None and LOWEST_PORT <= port < 65536 else None

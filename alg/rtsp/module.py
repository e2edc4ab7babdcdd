"""`RtspModule`: real-time streams (RFC 2326, RFC 7826) over one TCP flow, transparent or through SOCKS.

A client's SETUP says at which of its UDP ports it wants media. Each of these gets a public port before the request goes
on, and the request names that; the answer is told the client's own ports again. Where streams go through the
connection itself ("interleaved") there is nothing to do, and from the answer to PLAY on nothing is read any more.

A server inside that is published (`[[publish]]`) knows its client by an address of the router, and is known by one to
its client: each is told of the other's ports at the router (`OpenExchange`), and answers name the public endpoint.

Rules that end the flow's right to pinholes; from then on bytes are relayed unread:

    rtsp.not-rtsp  a side does not begin as RTSP, or something else stands where a message has to begin
    rtsp.framing   a message's end cannot be told
    rtsp.stalled   a head that does not go on
    rtsp.address   SETUP names a third host as the destination of media

Codes of notes beside these: rtsp.tunnel (RTSP in HTTP: it is interleaved), rtsp.streams (too many), rtsp.port,
rtsp.destination, rtsp.refused, rtsp.unanswered (not edited), rtsp.server-port (a published server does not say it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from alg.address import Address, Endpoint, canonical, is_private
from alg.api import (
    Bypass,
    Closed,
    Command,
    Deliver,
    Edit,
    Event,
    FlowContext,
    Note,
    Opened,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
)
from alg.output import Output
from alg.rtsp.message import (
    DEFAULT_PORT,
    RtspHead,
    conceal,
    content_length,
    is_description,
    places_in_description,
    places_of,
    read_head,
)
from alg.rtsp.options import RtspOptions
from alg.rtsp.requests import OpenRequest, OpenRequests
from alg.rtsp.stream import RtspFramer, RtspPart
from alg.rtsp.streams import UNCLAIMED, Pair, Pairs
from alg.rtsp.transport import HostSpan, Spec, read_transport
from alg.text.header import Malformed
from alg.text.heads import MOST

ANSWER_WITHIN = 5.0  # seconds for Opened or Refused
HEAD_WITHIN = 10.0  # seconds for the rest of a head
MOST_BEHIND = 65536  # bytes behind a message that waits
MOST_HTTP = 8192  # bytes of a head in which a tunnel says what it is
PORT, DESTINATION = "rtsp.client-port", "rtsp.destination"
SERVER_PORT, SOURCE, URL, ADDRESS, LENGTH = (
    "rtsp.server-port",
    "rtsp.source",
    "rtsp.url",
    "rtsp.description",
    "rtsp.content-length",
)
_UNAUTHORIZED = (401, 407)
_TUNNEL = (b"x-sessioncookie", b"application/x-rtsp-tunnelled")


@dataclass(slots=True)
class HeldSetup:
    """A SETUP that waits for its ports. `waits`: for which; `due`: when it goes without them."""

    data: bytes
    specs: list[Spec]
    request: OpenRequest
    waits: set[int]
    due: float


@dataclass(slots=True)
class RtspDirection:
    """One direction of the connection. `spoke`: its bytes have begun as RTSP; `since`: when the framer was last given
    bytes."""

    framer: RtspFramer = field(default_factory=RtspFramer)
    spoke: bool = False
    since: float = 0.0


class RtspModule:
    """One connection between a client and an RTSP server, as `alg.api.AlgModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (554, 8554)
    kinds: ClassVar[tuple[str, ...]] = ("conversation", "exchange")
    Options: ClassVar[type[RtspOptions]] = RtspOptions
    shown: ClassVar[bool] = True
    conceal = staticmethod(conceal)
    most_held: ClassVar[int] = MOST + MOST_BEHIND

    def __init__(self, context: FlowContext) -> None:
        options = context.options if isinstance(context.options, RtspOptions) else RtspOptions()
        self._client: Address = canonical(context.client.host)
        self._own = {self._client, *([canonical(context.public.host)] if context.public else [])}
        self._server: Address = canonical(context.server.host)
        self._published = context.inside is not Side.CLIENT
        self._pairs = Pairs(str(self._client), str(self._server), options.streams, self._published)
        self._inside = Endpoint(str(self._server), context.server.port)
        self._found = context.published  # where the client finds a published server
        self._described: tuple[bytes, list[Edit]] | None = None  # the head of an answer whose description comes
        self._directions = {side: RtspDirection() for side in Side}
        self._requests = OpenRequests()
        self._held: HeldSetup | None = None
        self._is_http = False  # the client has begun as HTTP, and the head's end is not there yet
        self._interleaved = False  # some stream goes through the connection itself
        self._now = 0.0
        self._out = Output()

    def deadline(self) -> float | None:
        """See `AlgModule.deadline`."""
        if self._out.over:
            return None
        times = [
            direction.since + HEAD_WITHIN for side, direction in self._directions.items() if self._is_partial(side)
        ]
        times += [self._held.due] if self._held is not None else []
        pairs = self._pairs.deadline()
        return min([*times, pairs] if pairs is not None else times, default=None)

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._now = event.now
        match event:
            case Received(side, data, now):
                direction = self._directions[side]
                direction.framer.add(data)
                direction.since = now
            case Closed(side, _):
                self._out.close(side)
            case Opened(ref, public, _, inner):
                self._opened(ref, public, inner)
            case Refused(ref, rule, _):
                self._refused(ref, rule)
            case Tick():
                self._tick()
        for side in Side:
            self._read(side)
        for side in Side:
            self._end(side)
        return self._out.take()

    # --- streams ----------------------------------------------------------------------------------------------------

    def _is_partial(self, side: Side) -> bool:
        """Whether a head of this side has begun and is not whole."""
        waits = self._held is not None and side is Side.CLIENT
        return len(self._directions[side].framer) > 0 and not waits

    def _read(self, side: Side) -> None:
        """Take what is whole; a SETUP that waits holds what is behind it."""
        direction = self._directions[side]
        while not self._out.over and not (self._held is not None and side is Side.CLIENT):
            if self._is_http and side is Side.CLIENT:
                self._read_http()
                return
            try:
                framed = direction.framer.take()
            except Malformed as wrong:
                self._malformed(side, wrong)
                return
            if framed is None:
                return
            if framed.part is RtspPart.BODY:
                self._describe(framed.data)
                continue
            if framed.part is RtspPart.PASSING:
                self._out.add(Deliver(side.other, framed.data))
                continue
            head = read_head(framed.data)
            if not direction.spoke and bool(head.method) is not (side is Side.CLIENT):
                self._give_up("rtsp.not-rtsp", f"the {side} does not begin as one", Deliver(side.other, framed.data))
                return
            direction.spoke = True
            if head.method and side is Side.CLIENT:
                self._requested(framed.data, head)
            elif head.status and side is Side.SERVER:
                self._responded(framed.data, head)
            else:  # what a server asks of a client, and what that answers
                self._out.add(Deliver(side.other, framed.data))

    def _malformed(self, side: Side, wrong: Malformed) -> None:
        direction = self._directions[side]
        if side is Side.CLIENT and not direction.spoke and direction.framer.beginning().startswith((b"GET ", b"POST ")):
            self._is_http = True
            self._read_http()
            return
        rule = "rtsp.framing" if wrong.reason == "content-length" else "rtsp.not-rtsp"
        self._give_up(rule, f"the {side}: {wrong.reason}, at byte {wrong.at}")

    def _read_http(self) -> None:
        """Handle a client that begins as HTTP: RTSP in two HTTP connections (QuickTime's way) is named in their heads;
        any other HTTP is not for this module."""
        direction = self._directions[Side.CLIENT]
        head, end, _ = direction.framer.beginning().partition(b"\r\n\r\n")
        if not end and len(head) < MOST_HTTP and not self._out.is_to_end(Side.CLIENT):
            return
        if any(word in head.lower() for word in _TUNNEL):
            self._out.note("rtsp.tunnel", "RTSP in HTTP goes through the connection itself")
            self._leave()
        else:
            self._give_up("rtsp.not-rtsp", "the client begins as HTTP")

    def _end(self, side: Side) -> None:
        """Pass the end of a side's stream on, when all that was before it has gone."""
        if not self._out.is_to_end(side) or (self._held is not None and side is Side.CLIENT):
            return
        if side is Side.SERVER:
            self._let_go()
        self._out.deliver(side.other, self._directions[side].framer.rest())
        self._out.end(side)

    def _give_up(self, rule: str, detail: str, *first: Deliver) -> None:
        """Something that cannot be meant honestly: nothing is opened any more, and bytes pass unread, `first` these."""
        self._out.add(Note(rule, detail), Revoke(rule), *first)
        self._leave()

    def _leave(self) -> None:
        """Deliver all bytes that are held, and stop reading."""
        self._out.over = True
        if self._held is not None:
            self._out.add(Deliver(Side.SERVER, self._held.data))
            self._held = None
        self._let_go()
        for side, direction in self._directions.items():
            self._out.deliver(side.other, direction.framer.rest())
        for side in Side:
            self._end(side)
        self._out.add(Bypass())

    def _tick(self) -> None:
        if self._held is not None and self._held.due <= self._now:
            self._out.note("rtsp.unanswered", "SETUP goes as it came: nobody has said whether its ports are open")
            self._release()
        self._out.add(*self._pairs.tick(self._now, self._named()))
        for side, direction in self._directions.items():
            if self._is_partial(side) and direction.since + HEAD_WITHIN <= self._now and not self._out.over:
                self._give_up("rtsp.stalled", f"a message of the {side} does not go on")

    # --- requests ---------------------------------------------------------------------------------------------------

    def _requested(self, data: bytes, head: RtspHead) -> None:
        request = OpenRequest(head.method, head.uri, head.cseq, head.session)
        if head.method != b"SETUP":
            self._requests.add(request)
            self._out.add(Deliver(Side.SERVER, data))
            return
        specs = [spec for span in head.transports for spec in read_transport(data, span)]
        if (third := self._third_host(specs)) is not None:
            named = third.text.decode("latin-1")
            self._give_up("rtsp.address", f"SETUP names {named} as the destination", Deliver(Side.SERVER, data))
            return
        waits: set[int] = set()
        for spec in specs:
            pair = self._pair_for(spec)
            if pair is None:
                continue
            if pair.ref not in request.refs:
                request.refs.append(pair.ref)
            pair.unclaimed_at = 0.0
            if pair.public is None:
                waits.add(pair.ref)
        self._held = HeldSetup(data, specs, request, waits, self._now + ANSWER_WITHIN)
        if not waits:
            self._release()

    def _pair_for(self, spec: Spec) -> Pair | None:
        """The client's sockets that a specification names, if they are to have public ports."""
        sockets = spec.sockets
        if sockets is None:
            if spec.is_udp and spec.ports:
                self._out.note("rtsp.port", f"port {spec.ports[0].number} is left alone")
            return None
        if any(_address(host) not in self._own for host in spec.destinations):
            self._out.note("rtsp.destination", "a destination that is not the client's address is left alone")
            return None
        if (known := self._pairs.of(sockets)) is not None:
            return known
        opened = self._pairs.open(sockets, "rtsp.rtp" if spec.is_rtp else "rtsp.rdt", self._now)
        if opened is None:
            self._out.note("rtsp.streams", "the connection has as many streams as it may have")
            return None
        self._out.add(opened[1])
        return opened[0]

    def _third_host(self, specs: Sequence[Spec]) -> HostSpan | None:
        """A host that is to get media which it has not asked for."""
        for spec in specs:
            for host in spec.destinations if spec.is_udp else ():
                address = _address(host)
                if address is None or address in self._own:
                    continue
                if not (address.is_multicast or address.is_loopback or address.is_unspecified):
                    return host
        return None

    def _opened(self, ref: int, public: Endpoint, inner: Endpoint | None) -> None:
        pair = self._pairs.get(ref)
        if pair is not None:
            pair.public, pair.facing = (inner, public) if self._published else (public, None)
        self._answered(ref)

    def _refused(self, ref: int, rule: str) -> None:
        self._pairs.lost(ref)
        self._out.note("rtsp.refused", rule)
        self._answered(ref)

    def _answered(self, ref: int) -> None:
        held = self._held
        if held is not None:
            held.waits.discard(ref)
            if not held.waits:
                self._release()

    def _release(self) -> None:
        """Let the SETUP go, with the ports that are open."""
        held = self._held
        if held is None:
            return
        self._held = None
        edits: list[Edit] = []
        for spec in held.specs:
            pair = self._pairs.of(spec.sockets) if spec.sockets is not None else None
            if pair is None or pair.public is None or pair.ref not in held.request.refs:
                continue
            for port in spec.ports:
                number = pair.public_port(port.number)
                if number is not None and number != port.number:
                    edits.append(Edit(*port.span, str(number).encode(), PORT))
            for host in spec.destinations:
                if _address(host) == self._client and pair.public.host != str(self._client):
                    edits.append(Edit(*host.span, pair.public.host.encode(), DESTINATION))
        self._requests.add(held.request)
        self._out.add(Deliver(Side.SERVER, held.data, tuple(sorted(edits))))

    # --- responses --------------------------------------------------------------------------------------------------

    def _responded(self, data: bytes, head: RtspHead) -> None:
        request = self._requests.answered(head.cseq, head.is_final)
        edits: list[Edit] = []
        if request is None or not head.is_final:
            pass
        elif request.method == b"SETUP":
            edits = self._set_up(data, head, request)
        elif request.method == b"TEARDOWN" and head.succeeds:
            self._out.add(*self._pairs.torn_down(request.session, request.uri, self._named()))
        if self._found is not None:
            edits += [Edit(*span, self._shown(), URL) for span in places_of(data, self._inside)]
            if is_description(data) and self._directions[Side.SERVER].framer.gather(MOST):
                self._described = data, edits
                return
        self._out.add(Deliver(Side.CLIENT, data, tuple(sorted(edits))))
        if request is not None and request.method in (b"PLAY", b"RECORD") and head.succeeds:
            self._plays()

    def _shown(self) -> bytes:
        """Return the public host and port of a published server, as URLs have them."""
        found = self._found
        if found is None:
            return b""
        text = str(found).encode()
        return text.removesuffix(b":%d" % DEFAULT_PORT) if found.port == DEFAULT_PORT else text

    def _describe(self, body: bytes) -> None:
        """Edit the session description of a published server: its own address becomes the public one."""
        described, self._described = self._described, None
        if described is None or self._found is None:
            self._out.add(Deliver(Side.CLIENT, body))
            return
        head, of_head = described
        urls, alone = places_in_description(body, self._inside)
        edits = [Edit(*span, self._shown(), URL) for span in urls]
        edits += [Edit(*span, self._found.host.encode(), ADDRESS) for span in alone]
        growth = sum(len(edit.replacement) - (edit.end - edit.start) for edit in edits)
        if growth and (length := content_length(head)) is not None:
            of_head = [*of_head, Edit(*length, str(len(body) + growth).encode(), LENGTH)]
        self._out.add(Deliver(Side.CLIENT, head, tuple(sorted(of_head))))
        self._out.add(Deliver(Side.CLIENT, body, tuple(sorted(edits))))

    def _let_go(self) -> None:
        """Deliver a head whose session description has not come in time."""
        if self._described is not None:
            head, edits = self._described
            self._described = None
            self._out.add(Deliver(Side.CLIENT, head, tuple(sorted(edits))))

    def _plays(self) -> None:
        """Stop reading if all streams go through the connection itself, for which nothing has to be opened."""
        if self._interleaved and not len(self._pairs) and self._held is None:
            self._leave()

    def _set_up(self, data: bytes, head: RtspHead, request: OpenRequest) -> list[Edit]:
        """Handle the response to a SETUP: find out which of the sockets are used, and by which host."""
        if not head.succeeds:
            if head.status in _UNAUTHORIZED:  # the client asks once more, for the same ports
                for ref in request.refs:
                    if (pair := self._pairs.get(ref)) is not None:
                        pair.unclaimed_at = self._now + UNCLAIMED
            else:
                self._out.add(*self._pairs.drop(request.refs, self._named()))
            return []
        pairs = [pair for ref in request.refs if (pair := self._pairs.get(ref)) is not None]
        edits: list[Edit] = []
        used: list[Pair] = []
        specs = [spec for span in head.transports for spec in read_transport(data, span)]
        for spec in specs:
            if not spec.is_udp:
                self._interleaved = self._interleaved or not spec.multicast
                continue
            pair = _chosen(spec, pairs)
            if pair is None:
                continue
            used.append(pair)
            edits += self._put_back(spec, pair)
            if self._published:
                edits += self._facing(spec, pair)
            else:
                self._let_in(spec, pair)
        if not specs:
            used = pairs[:1]
        for pair in used:
            pair.claims.add((head.session or request.session, request.uri))
        self._out.add(*self._pairs.drop(request.refs, self._named()))
        return edits

    def _put_back(self, spec: Spec, pair: Pair) -> list[Edit]:
        """Return the edits that put the client's own ports back in place of public ones."""
        edits: list[Edit] = []
        for port in spec.ports:
            number = pair.own_port(port.number)
            if number is not None and number != port.number:
                edits.append(Edit(*port.span, str(number).encode(), PORT))
        for host in spec.destinations:
            public = canonical(pair.public.host) if pair.public is not None else None
            if public is not None and public != self._client and _address(host) == public:
                edits.append(Edit(*host.span, str(self._client).encode(), DESTINATION))
        return edits

    def _facing(self, spec: Spec, pair: Pair) -> list[Edit]:
        """Return the edits of the response of a published server: the client reads the public ports in place of those
        from which the server sends."""
        if pair.facing is None:
            return []
        edits: list[Edit] = []
        if not spec.server_ports or not all(1024 <= port.number <= 65535 for port in spec.server_ports):
            self._out.note(
                "rtsp.server-port", "the server does not name the ports from which it sends: its media do not pass"
            )
            return []
        second = spec.server_ports[1].number if len(spec.server_ports) == 2 else None
        self._out.add(*self._pairs.serves(pair, spec.server_ports[0].number, second))
        for offset, port in enumerate(spec.server_ports):
            edits.append(Edit(*port.span, str(pair.facing.port + offset).encode(), SERVER_PORT))
        for host in spec.sources:
            if _address(host) == self._server:
                edits.append(Edit(*host.span, pair.facing.host.encode(), SOURCE))
        return edits

    def _let_in(self, spec: Spec, pair: Pair) -> None:
        """Media may come from another host than the server, which the server names."""
        for host in spec.sources:
            address = _address(host)
            if address is not None and address not in self._own and self._may_send(address):
                self._out.add(*self._pairs.let_in(pair, str(address)))

    def _may_send(self, address: Address) -> bool:
        """Whether it is a host that media can come from: cameras behind a NAT name addresses of their own network,
        which are hosts of ours then."""
        if address.version != self._client.version or is_private(address) is not is_private(self._server):
            return False
        return not (address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local)

    def _named(self) -> set[int]:
        """The conversations of requests that are not answered."""
        held = self._held.request.refs if self._held is not None else []
        return {*self._requests.setting_up(), *held}


def _chosen(spec: Spec, pairs: Sequence[Pair]) -> Pair | None:
    """Return the pair that a response has chosen: the one whose port it names; if it names none, the first."""
    if not spec.ports:
        return pairs[0] if pairs else None
    for pair in pairs:
        if pair.own_port(spec.ports[0].number) is not None or spec.ports[0].number in pair.sockets:
            return pair
    return pairs[0] if pairs else None


def _address(host: HostSpan) -> Address | None:
    """The address that a host is; None for a name."""
    try:
        return canonical(host.text.decode("ascii"))
    except ValueError:
        return None

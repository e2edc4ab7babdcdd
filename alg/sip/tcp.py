"""`SipModule`: SIP over one TCP flow, transparent or through SOCKS.

Rules: sip.not-sip (the flow does not begin as SIP on a side), sip.framing (a message's end cannot be determined),
sip.stalled (a message does not go on), sip.waiting (too much waits behind a message). Each ends the right to pinholes
for as long as the connection lasts, and what comes is relayed unread: what looks like SIP in the middle of something
else never counts. What running calls have advertised stays open until they end, by their timers or by silence, also
when the connection ends.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from alg.address import Endpoint, canonical
from alg.api import (
    Activity,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Edit,
    Event,
    FindSocket,
    FlowContext,
    Note,
    OpenConversation,
    Opened,
    Received,
    Refused,
    Revoke,
    Rung,
    Side,
    Tick,
    UpdateConversation,
)
from alg.datagrams import DatagramModule, Kicked, Release, Row, Shown
from alg.sip.call import CallState
from alg.sip.core import Core
from alg.sip.ladder import unread_rung
from alg.sip.options import SipOptions
from alg.sip.peers import PeerRow
from alg.sip.rows import CallRow, call_rows, kicked, peer_rows, row_of
from alg.sip.stream import MOST, Framer, Part
from alg.sip.udp import GAUGES, TABLES, SipEngine
from alg.text.header import Malformed

STALLED = 10.0  # seconds for the rest of a message
MOST_WAITING = 262144  # bytes behind a message that waits


@dataclass(slots=True)
class StreamPiece:
    """A message, or bytes between messages, on their way."""

    data: bytes
    ready: bool
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = None


@dataclass(slots=True)
class SipStream:
    """One direction. `framer` holds what is no whole message yet, `pieces` what waits for its turn, `waiting` the
    number of bytes."""

    framer: Framer = field(default_factory=Framer)
    pieces: deque[StreamPiece] = field(default_factory=deque)
    waiting: int = 0
    spoke: bool = False
    closed: bool = False
    ended: bool = False
    stalls_at: float = 0.0


class SipModule:
    """One TCP connection between a client and a SIP server, as `alg.api.AlgModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (5060,)
    kinds: ClassVar[tuple[str, ...]] = ("conversation",)
    Options: ClassVar[type[SipOptions]] = SipOptions
    datagrams: ClassVar[type[DatagramModule]] = SipEngine
    tables: ClassVar[tuple[str, ...]] = TABLES
    gauges: ClassVar[tuple[str, ...]] = GAUGES
    share: ClassVar[float] = 1.0  # of a processor: a trunk may carry the calls of a whole site
    most_held: ClassVar[int] = MOST + MOST_WAITING  # a message that is not whole, and what waits before it
    shown: ClassVar[bool] = True  # its messages hold no passwords, so `algate trace` may show them
    outlives: ClassVar[bool] = True

    def __init__(self, context: FlowContext) -> None:
        options = context.options if isinstance(context.options, SipOptions) else SipOptions()
        self._client = Endpoint.of(canonical(context.client.host), context.client.port)
        self._server = Endpoint.of(canonical(context.server.host), context.server.port)
        self.look_every = options.look_every
        self._core = Core(options, streams=True)
        # What the client advertises of itself is this connection (RFC 5923). Without the
        # connection's own address nothing of the signalling is edited.
        self._core.sockets.fix(self._client, context.public or self._client)
        self._streams = {side: SipStream() for side in Side}
        self._waiting: dict[int, StreamPiece] = {}
        self._packet = 0
        self._unread = context.inside is not Side.CLIENT  # from now on
        self._rule: str | None = None  # by which the right to pinholes has ended
        self._out: list[Command] = []

    def deadline(self) -> float | None:
        """See `AlgModule.deadline`."""
        times = [] if self._unread else [stream.stalls_at for stream in self._streams.values() if len(stream.framer)]
        core = self._core.deadline()
        return min([*times, core] if core is not None else times, default=None)

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return [row_of(call) for call in self._core.calls.all()]

    def peers(self, now: float) -> list[PeerRow]:
        """Return how messages between the two sides are treated."""
        if self._rule is not None:
            return [PeerRow(self._client, self._server.host, "revoked", self._rule, None)]
        return self._core.peers.rows(now)

    def table(self, name: str, shown: Shown) -> list[Row]:
        """Return the calls under way as `algate calls` shows them, or how messages between the two sides are
        treated."""
        if name == "peers":
            return peer_rows(self.peers(shown.now), shown.now)
        return call_rows(self.calls(), shown.leases, shown.traffic, shown.now) if name == "calls" else []

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """Return the number of calls, for the metrics."""
        states = Counter(str(call.state) for call in self._core.calls.all())
        return [(("algate_calls", state), float(number)) for state, number in states.items()]

    def kick(self, name: str) -> list[Kicked]:
        """End the media of the call with this Call-ID."""
        return kicked(self.calls(), name)

    def lives_on(self) -> bool:
        """Whether there are calls that were answered or ring, which do not end with their connection (RFC 3261, 12 and
        18)."""
        return any(call.state in (CallState.EARLY, CallState.CONFIRMED) for call in self._core.calls.all())

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._out = []
        match event:
            case Received(side, data, now):
                stream = self._streams[side]
                stream.framer.add(data)
                stream.stalls_at = now + STALLED
                self._read(side, now)
            case Closed(side, _):
                self._streams[side].closed = True
            case Opened(ref, public, now):
                self._core.opened(ref, public, now)
            case Refused(ref, rule, now):
                self._core.refused(ref, rule, now)
            case Activity(ref, packets_in, packets_out, now):
                self._core.active(ref, (packets_in, packets_out), now)
            case Tick(now):
                self._core.tick(now)
                for stream in self._streams.values():
                    if len(stream.framer) and stream.stalls_at <= now and not self._unread:
                        self._give_up("sip.stalled", Malformed("a message that does not go on"))
        self._collect()
        return self._out

    def _read(self, side: Side, now: float) -> None:
        stream = self._streams[side]
        while not self._unread:
            try:
                cut = stream.framer.take()
            except Malformed as wrong:
                self._give_up("sip.framing" if stream.spoke else "sip.not-sip", wrong)
                return
            if cut is None:
                break
            piece = StreamPiece(cut.data, ready=cut.part is not Part.MESSAGE)
            stream.pieces.append(piece)
            stream.waiting += len(cut.data)
            if cut.why:
                self._core.unreadable(self._client, self._server.host, Malformed(cut.why), now)
            if cut.part is not Part.BETWEEN:
                stream.spoke = True
            if not piece.ready:
                self._packet += 1
                self._waiting[self._packet] = piece
                self._core.message(self._packet, side, self._client, self._server, cut.data, now)
                self._commands()
                self._deliver(side)
        if stream.waiting > MOST_WAITING:
            self._give_up("sip.waiting", Malformed(f"{stream.waiting} bytes wait"))

    def _commands(self) -> None:
        for command in self._core.drain():
            match command:
                case Release(packet, edits, rung):
                    piece = self._waiting.pop(packet)
                    piece.ready, piece.edits, piece.rung = True, edits, rung
                case OpenConversation() | UpdateConversation() | ClosePinhole() | FindSocket() | Note():
                    self._out.append(command)

    def _collect(self) -> None:
        """Deliver what is ready, in order."""
        self._commands()
        for side, stream in self._streams.items():
            self._deliver(side)
            if len(stream.framer) and (self._unread or (stream.closed and not stream.pieces)):
                self._out.append(Deliver(side.other, stream.framer.rest()))
            if stream.closed and not stream.ended and not stream.pieces:
                stream.ended = True
                self._out.append(CloseWrite(side.other))
        if self._unread:
            self._out.append(Bypass())

    def _deliver(self, side: Side) -> None:
        stream = self._streams[side]
        while stream.pieces and (stream.pieces[0].ready or self._unread):
            piece = stream.pieces.popleft()
            stream.waiting -= len(piece.data)
            rung = piece.rung if piece.ready else unread_rung(piece.data)
            self._out.append(Deliver(side.other, piece.data, piece.edits, rung))

    def _give_up(self, rule: str, wrong: Malformed) -> None:
        """Relay unread from now on. Messages that wait are delivered as they are."""
        self._commands()
        self._unread, self._rule = True, rule
        self._core.unread += 1
        detail = f"{self._client}: relayed unread from now on: {wrong.reason}, at byte {wrong.at}"
        self._out += (Note(rule, detail, unread=True), Revoke(rule))

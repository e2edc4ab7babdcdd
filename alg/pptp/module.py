"""`PptpModule`: the calls of a client inside with a PPTP server outside (RFC 2637).

A call's packets are GRE, which has no ports: its receiver has chosen a call ID. A client's request names the one for
what the server sends, so the kernel is told of it before the request goes on; where another client has it with the same
server, the request names another one, and the kernel puts the client's own back into the packets. The server's reply
names the one for what the client sends, and goes on when that may leave.

The ID is 2 bytes in place, and nothing else is edited. Rules that end the flow's right to pinholes: pptp.not-pptp (what
comes is no control message). Codes of notes beside it: pptp.early, pptp.many, pptp.refused, pptp.unanswered (the
request goes as it came), pptp.incoming (calls of the server are not served), pptp.published, pptp.ipv6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
    Command,
    Deliver,
    Edit,
    Event,
    FlowContext,
    Mode,
    Note,
    Opened,
    OpenGre,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
    UpdateGre,
)
from alg.output import Output
from alg.pptp.message import (
    CONNECTED,
    FIRST,
    SECOND,
    MessageBuffer,
    MessageType,
    NotPptp,
    kind_of,
    number_at,
    packed,
    result_of,
)

MOST = 8  # calls of a connection
SETUP = 120.0  # seconds for the server's answer
LIVE = 600.0  # seconds that a call goes on without this module
CLEARING = 10.0  # seconds for the end of a call that the client clears
ANSWER_WITHIN = 5.0  # seconds for Opened or Refused
REST_WITHIN = 5.0  # seconds for the rest of a message
REASON, CALL_ID = "pptp.call", "pptp.id"


@dataclass(slots=True)
class PptpCall:
    """A call. `own`: the client's call ID. `public`: the one that the server uses, once that is known. `server`: the
    server's. `due`: when something is to be done."""

    ref: int
    own: int
    due: float
    public: int | None = None
    server: int | None = None
    clearing: bool = False


class PptpModule:
    """One control connection, as `alg.api.AlgModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (1723,)
    default_mode: ClassVar[Mode] = Mode.OFF
    kinds: ClassVar[tuple[str, ...]] = ("gre",)
    shown: ClassVar[bool] = True  # names of machines and vendors, and no secret: those are in the tunnel

    def __init__(self, context: FlowContext) -> None:
        self._why_not = ""  # the note, if calls cannot be served
        if context.inside is not Side.CLIENT:
            self._why_not = "pptp.published"
        elif context.client.version != 4:
            self._why_not = "pptp.ipv6"
        self._buffers = {side: MessageBuffer() for side in Side}
        self._since = dict.fromkeys(Side, 0.0)  # when a side has last said something
        self._waiting: deque[bytes] = deque()  # what the client said, the first one a request that waits
        self._held: PptpCall | None = None  # whose request that is
        self._calls: dict[int, PptpCall] = {}  # by ref
        self._refs = 0
        self._begun = self._granted = False
        self._now = 0.0
        self._out = Output()

    def deadline(self) -> float | None:
        """See `AlgModule.deadline`."""
        if self._out.over:
            return None
        times = [self._since[side] + REST_WITHIN for side in Side if len(self._buffers[side])]
        return min([*times, *(call.due for call in self._calls.values())], default=None)

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._now = event.now
        match event:
            case Received(side, data, now):
                self._since[side] = now
                self._received(side, data)
            case Closed(side, _):
                self._out.close(side)
            case Opened(ref, public, _):
                self._opened(ref, public.port)
            case Refused(ref, rule, _):
                self._refused(ref, rule)
            case Tick(now):
                self._tick(now)
        for side in Side:
            self._end(side)
        return self._out.take()

    # --- messages ---------------------------------------------------------------------------------------------------

    def _received(self, side: Side, data: bytes) -> None:
        buffer = self._buffers[side]
        buffer.feed(data)
        if self._why_not:
            self._out.note(self._why_not, "calls of this connection are left alone")
            self._leave()
            return
        try:
            while not self._out.over and (message := buffer.take()) is not None:
                if side is Side.SERVER:
                    self._from_server(message)
                else:
                    self._waiting.append(message)
                    self._from_client()
        except NotPptp:
            self._give_up(f"the {side} says something else")

    def _from_client(self) -> None:
        """Deliver what the client said, up to a request that has to wait."""
        while self._waiting and self._held is None and not self._out.over:
            message = self._waiting[0]
            kind, number = kind_of(message), number_at(message, FIRST)
            if not self._begun and kind != MessageType.START_REQUEST:
                self._give_up("the client does not begin with a request for a control connection")
                return
            self._begun = True
            if kind == MessageType.OUTGOING_CALL_REQUEST and number is not None and self._opens(number):
                return
            edits: tuple[Edit, ...] = ()
            if kind == MessageType.CALL_CLEAR_REQUEST:
                call = next(
                    (known for known in self._calls.values() if known.own == number and not known.clearing), None
                )
                if call is not None and call.public is not None:
                    edits = _edit(FIRST, call.own, call.public)
                    call.clearing, call.due = True, self._now + CLEARING
            self._out.add(Deliver(Side.SERVER, self._waiting.popleft(), edits))

    def _opens(self, number: int) -> bool:
        """Ask for a call; whether that was asked for."""
        if not self._granted:
            self._out.note("pptp.early", "a call before the server has granted the connection")
            return False
        for known in [call for call in self._calls.values() if call.own == number]:  # the client has forgotten it
            self._shut(known)
        if len(self._calls) >= MOST:
            self._out.note("pptp.many", "the connection has as many calls as it may have")
            return False
        self._refs += 1
        call = self._held = self._calls[self._refs] = PptpCall(self._refs, number, self._now + ANSWER_WITHIN)
        self._out.add(OpenGre(call.ref, number, SETUP, REASON))
        return True

    def _opened(self, ref: int, public: int) -> None:
        call = self._held
        if call is None or call.ref != ref:  # too late
            self._out.add(ClosePinhole(ref))
            return
        call.public, call.due = public, self._now + SETUP
        self._release(_edit(FIRST, call.own, public))

    def _refused(self, ref: int, rule: str) -> None:
        self._out.note("pptp.refused", rule)
        call = self._calls.pop(ref, None)
        if call is not None and call is self._held:
            self._release(())

    def _release(self, edits: tuple[Edit, ...]) -> None:
        """Let the request go, and what is behind it."""
        self._held = None
        self._out.add(Deliver(Side.SERVER, self._waiting.popleft(), edits))
        self._from_client()

    def _from_server(self, message: bytes) -> None:
        kind = kind_of(message)
        edits: tuple[Edit, ...] = ()
        shut: list[PptpCall] = []
        match kind:
            case MessageType.START_REPLY:
                self._granted = result_of(message) == CONNECTED
            case MessageType.STOP_REPLY:
                shut = [*self._calls.values()]
            case MessageType.OUTGOING_CALL_REPLY:
                edits, shut = self._answered(message)
            case MessageType.INCOMING_CALL_REQUEST:
                self._out.note("pptp.incoming", "the server calls the client; such calls are left alone")
            case MessageType.WAN_ERROR_NOTIFY | MessageType.SET_LINK_INFO:
                if (call := self._by_public(number_at(message, FIRST))) is not None:
                    edits = _edit(FIRST, call.public, call.own)
            case MessageType.CALL_DISCONNECT_NOTIFY:
                number = number_at(message, FIRST)
                shut = [call for call in self._calls.values() if call.server is not None and call.server == number]
        self._out.add(Deliver(Side.CLIENT, message, edits))
        for call in shut:
            self._shut(call)

    def _answered(self, message: bytes) -> tuple[tuple[Edit, ...], list[PptpCall]]:
        """The server's answer to a request: edits, and the call if it is over."""
        call, number = self._by_public(number_at(message, SECOND)), number_at(message, FIRST)
        if call is None or call.server is not None or number is None:
            return (), []
        edits = _edit(SECOND, call.public, call.own)
        if result_of(message) != CONNECTED:
            return edits, [call]
        call.server = number
        self._go_on(call)
        return edits, []

    def _by_public(self, number: int | None) -> PptpCall | None:
        found = (call for call in self._calls.values() if call.public is not None and call.public == number)
        return next(found, None)

    def _go_on(self, call: PptpCall) -> None:
        if call.server is not None:
            call.due = self._now + LIVE / 2
            self._out.add(UpdateGre(call.ref, call.server, LIVE))

    def _shut(self, call: PptpCall) -> None:
        if self._calls.pop(call.ref, None) is not None:
            self._out.add(ClosePinhole(call.ref))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        for call in [call for call in self._calls.values() if call.due <= now]:
            if call is self._held:
                self._out.note("pptp.unanswered", "a request goes as it came: nobody has said whether its call is open")
                self._shut(call)
                self._release(())
            elif call.server is None or call.clearing:
                self._shut(call)
            else:
                self._go_on(call)
        if any(len(self._buffers[side]) and self._since[side] + REST_WITHIN <= now for side in Side):
            self._give_up("the rest of a message does not come")

    def _end(self, side: Side) -> None:
        if not self._out.is_to_end(side) or (side is Side.CLIENT and self._waiting):
            return
        if rest := self._buffers[side].release():
            self._out.deliver(side.other, rest)
        self._out.end(side)

    def _give_up(self, detail: str) -> None:
        self._out.add(Note("pptp.not-pptp", detail), Revoke("pptp.not-pptp"))
        self._leave()

    def _leave(self) -> None:
        """Deliver all bytes that are held, and stop reading."""
        self._out.over = True
        rest = {Side.CLIENT: b"".join(self._waiting), Side.SERVER: b""}
        self._held = None
        self._waiting.clear()
        for side, data in rest.items():
            data += self._buffers[side].release()
            self._out.deliver(side.other, data)
        for side in Side:
            self._end(side)
        self._out.add(Bypass())


def _edit(at: int, before: int | None, after: int) -> tuple[Edit, ...]:
    return (Edit(at, at + 2, packed(after), CALL_ID),) if before != after else ()

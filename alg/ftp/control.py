"""A control connection of FTP (RFC 959, 2428, 4217): follows it, asks for pinholes, rewrites PORT, EPRT, 227, 229.

Each direction is a queue of lines. A line that needs a pinhole holds its own direction until the answer, never the
other one. What is wrong or unclear is relayed as it came and revokes the flow's right to pinholes; from then on, bytes
are relayed unread. The rules (also codes of notes; the notes that revoke nothing are in docs/protocols/ftp.md):

    ftp.not-ftp   the client's first line is not a command, or is another protocol's
    ftp.greeting  the server's first bytes are not an FTP greeting
    ftp.early     PORT or EPRT before the server's greeting
    ftp.syntax    PORT, EPRT, 227 or 229 is not by the grammar, or a number is out of range
    ftp.address   PORT or EPRT names another host than the client, 227 another than the server
    ftp.family    EPRT names another address family than the flow's
    ftp.low-port  a port below 1024
"""

from __future__ import annotations

from collections.abc import Sequence

from alg.address import Endpoint, canonical
from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Edit,
    Event,
    FlowContext,
    Note,
    Opened,
    OpenOutbound,
    OpenPinhole,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
)
from alg.ftp.commands import FtpCommand, is_blank, may_begin_command, parse_command
from alg.ftp.convert import Meeting, Translated
from alg.ftp.endpoints import Advert, Foreign, Passive, Wrong, read_advert, read_epsv_reply, read_pasv_reply
from alg.ftp.holes import Holes
from alg.ftp.options import FtpOptions
from alg.ftp.replies import Kind, ReplyTracker, Sent, Unanswered, may_begin_replies
from alg.ftp.stream import Stream, Wait, joined
from alg.ftp.tls import TlsStream
from alg.lines import Line

TTL = 60.0
ANSWER_WITHIN = 5.0  # seconds for Opened or Refused
LINE_WITHIN = 5.0  # seconds for the rest of a line: a peer that does not speak in lines must not hang on us
MOST_HELD = 65536  # bytes behind a line that waits
_DATA_DONE = (226, 425, 426)  # of a data connection: closed, not opened, aborted


class FtpControl:
    """One control connection, as `alg.api.AlgModule`; `alg.ftp.session` adds conversion between the modes."""

    Options = FtpOptions

    def __init__(self, context: FlowContext) -> None:
        self._client = canonical(context.client.host)
        self._server = canonical(context.server.host)
        self._published = context.inside is Side.SERVER
        self._options = context.options if isinstance(context.options, FtpOptions) else FtpOptions()
        self._streams = {side: Stream() for side in Side}
        self._replies = ReplyTracker()
        self._unanswered = Unanswered()
        self._greeted = False
        self._epsv_all = False
        self._unread = False  # nothing is inspected any more
        self._tls: dict[Side, TlsStream] = {}  # directions that are encrypted
        self._spoke_during_auth = False
        self._holes = Holes()
        self._last_ref = 0
        self._out: list[Command] = []

    def deadline(self) -> float | None:
        """When a pending answer or an unfinished line is given up, or None."""
        times = [stream.wait.deadline for stream in self._streams.values() if stream.wait]
        times += [stream.stalls_at for stream in self._streams.values() if stream.buffer.partial]
        return min(times, default=None)

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._out = []
        match event:
            case Received(side, data, now):
                self._received(side, data, now)
            case Closed(side, now):
                self._closed(side, now)
            case Opened(ref, public, now):
                self._opened(ref, public, now)
            case Refused(ref, _, now):
                self._refused(ref, now)
            case Tick(now):
                for side in Side:
                    self._tick(side, now)
        return joined(self._out)

    # --- events -----------------------------------------------------------------------------------------------------

    def _received(self, side: Side, data: bytes, now: float) -> None:
        if self._unread:
            self._deliver(side, data)
            return
        if side in self._tls:
            data = self._encrypted(side, data)
            if not data:
                return
        stream = self._streams[side]
        stream.push(stream.buffer.feed(data))
        stream.stalls_at = now + LINE_WITHIN
        self._advance(side, now)
        while stream.wait and stream.held > MOST_HELD:
            self._no_answer(side)
            self._advance(side, now)

    def _closed(self, side: Side, now: float) -> None:
        stream = self._streams[side]
        stream.closed = True
        if self._unread:
            self._end(side)
            return
        if rest := stream.buffer.release():
            stream.push([Line(rest, whole=False)])
        self._advance(side, now)

    def _opened(self, ref: int, public: Endpoint, now: float) -> None:
        for side, stream in self._streams.items():
            if stream.wait and stream.wait.ref == ref:
                try:
                    edits = stream.wait.advert.edits(public)
                except ValueError as error:
                    self._out += (Note("ftp.unwritable", str(error)), ClosePinhole(ref))
                    self._release(side)
                else:
                    self._holes.add(ref)
                    if side is Side.SERVER:
                        self._out += self._holes.turn_to(ref)
                    self._release(side, edits, ref)
                self._advance(side, now)
                return
        if ref not in self._holes:
            self._out.append(ClosePinhole(ref))  # too late: its line has gone out as it was

    def _refused(self, ref: int, now: float) -> None:
        for side, stream in self._streams.items():
            if stream.wait and stream.wait.ref == ref:
                self._release(side)
                self._advance(side, now)

    def _tick(self, side: Side, now: float) -> None:
        stream = self._streams[side]
        if stream.wait and stream.wait.deadline <= now:
            self._no_answer(side)
        if stream.buffer.partial and stream.stalls_at <= now:
            stream.push([Line(stream.buffer.release(), whole=False)])
        self._advance(side, now)

    # --- lines ------------------------------------------------------------------------------------------------------

    def _advance(self, side: Side, now: float) -> None:
        """Go through the lines of `side` up to one that has to wait."""
        stream = self._streams[side]
        while stream.lines and not stream.wait:
            self._line(side, stream.pop(), now)
        if self._unread or stream.wait:
            return
        partial = stream.buffer.partial
        if side is Side.CLIENT and self._unanswered.has(Kind.AUTH):
            self._spoke_during_auth = self._spoke_during_auth or bool(partial)
            self._deliver(side, stream.buffer.release())  # may be TLS already, which knows no lines
        elif partial and not stream.spoke:
            may_begin = may_begin_command if side is Side.CLIENT else may_begin_replies
            if not may_begin(partial):
                self._revoke_first(side)
        self._end(side)

    def _line(self, side: Side, line: Line, now: float) -> None:
        stream = self._streams[side]
        if not line.whole:
            if stream.spoke or stream.closed:
                self._deliver(side, line.data)
            else:
                self._revoke_first(side, line.data)
        elif side is Side.CLIENT:
            self._client_line(line.data, now)
        else:
            self._server_line(line.data, now)

    def _client_line(self, line: bytes, now: float) -> None:
        during_auth = self._unanswered.has(Kind.AUTH)
        self._spoke_during_auth = self._spoke_during_auth or during_auth
        if is_blank(line) or during_auth:
            self._deliver(Side.CLIENT, line)
            return
        command = parse_command(line)
        stream = self._streams[Side.CLIENT]
        if not stream.spoke and (command is None or command.foreign):
            self._revoke_first(Side.CLIENT, line)
            return
        stream.spoke = True
        if command and command.verb in ("PORT", "EPRT"):
            self._port(command, line, now)
            return
        kind = Kind.OTHER
        if command and command.verb == "AUTH":
            kind = Kind.AUTH
        elif command and command.verb == "EPSV" and command.argument.upper() == b"ALL":
            kind = Kind.EPSV_ALL
            self._epsv_all = True
        elif command and command.verb in ("PASV", "EPSV", "REIN"):
            self._close_old()
            kind = {"PASV": Kind.PASV, "EPSV": Kind.EPSV}.get(command.verb, Kind.OTHER)
        elif command and command.verb in ("LPRT", "LPSV"):
            self._out.append(Note("ftp.rfc1639", f"{command.verb} is relayed, and nothing opened"))
        self._unanswered.add(Sent(kind))
        self._deliver(Side.CLIENT, line)

    def _port(self, command: FtpCommand, line: bytes, now: float) -> None:
        self._close_old()
        if self._epsv_all:
            self._out.append(Note("ftp.epsv-all", f"{command.verb} after EPSV ALL"))
            self._unanswered.add(Sent(Kind.OTHER))
            self._deliver(Side.CLIENT, line)
            return
        try:
            if not self._greeted:
                raise Wrong("ftp.early", f"{command.verb} before the server's greeting")
            advert = read_advert(command, self._client)
        except Wrong as wrong:
            self._revoke(wrong.rule, str(wrong), Side.CLIENT, line)
            return
        ref = self._wait(Side.CLIENT, line, now, advert)
        self._out.append(OpenPinhole(ref, advert.target, str(self._server), "tcp", TTL, 1, advert.reason))

    def _server_line(self, line: bytes, now: float) -> None:
        stream = self._streams[Side.SERVER]
        if not stream.spoke and not may_begin_replies(line):
            self._revoke_first(Side.SERVER, line)
            return
        stream.spoke = True
        code = self._replies.feed(line)
        if code is None:
            self._deliver(Side.SERVER, line)
        elif not self._greeted:
            # 120 and a refusal (421, 5xx) are no greeting yet; any other code is another protocol's (RFC 959, 5.4).
            if 200 <= code < 400 and code != 220:
                self._revoke("ftp.greeting", f"the server greets with {code}", Side.SERVER, line)
                return
            self._greeted = code == 220
            self._deliver(Side.SERVER, line)
        else:
            self._reply(code, line, now)

    def _reply(self, code: int, line: bytes, now: float) -> None:
        if code in _DATA_DONE:
            self._out += self._holes.turn_to(None)
        sent = self._unanswered.answer(code)
        if sent is None:
            self._deliver(Side.SERVER, line)
            return
        if sent.kind is Kind.AUTH and code < 400:
            self._stand_down(line, resumable=code == 234 and not self._spoke_during_auth)
            return
        if sent.kind is Kind.AUTH:
            self._spoke_during_auth = False
        if code in (227, 229) and not self._unanswered.has(Kind.AUTH):
            self._passive(sent, line, now)
            return
        if code >= 400 and sent.kind is Kind.EPSV_ALL:
            self._epsv_all = False
        if sent.ref in self._holes:
            self._out += self._holes.turn_to(sent.ref)
            if code >= 400:
                self._out += self._holes.turn_to(None)
        self._deliver(Side.SERVER, line, self._answer_edits(sent, code, line))

    def _answer_edits(self, sent: Sent, code: int, line: bytes) -> tuple[Edit, ...]:
        return ()  # to change in the last line of a reply to `sent`, which is no 227 or 229

    def _passive(self, sent: Sent, line: bytes, now: float) -> None:
        if sent.kind is Kind.PASV and self._epsv_all:
            self._out.append(Note("ftp.epsv-all", "227 after EPSV ALL"))
            self._deliver(Side.SERVER, line)
            return
        try:
            if sent.kind is Kind.PASV:
                passive = read_pasv_reply(line, self._server, self._options.pasv_address == "peer")
            else:
                passive = read_epsv_reply(line, self._server)
        except Foreign as foreign:
            self._out.append(Note(foreign.rule, str(foreign)))
            self._deliver(Side.SERVER, line)
            return
        except Wrong as wrong:
            self._revoke(wrong.rule, str(wrong), Side.SERVER, line)
            return
        ref = self._wait(Side.SERVER, line, now, passive)
        if self._published:
            self._out.append(OpenPinhole(ref, passive.target, str(self._client), "tcp", TTL, 1, passive.reason))
        else:
            self._out.append(OpenOutbound(ref, passive.target, "tcp", TTL, 1, "ftp.passive"))

    # --- what is done -----------------------------------------------------------------------------------------------

    def _deliver(self, side: Side, data: bytes, edits: tuple[Edit, ...] = ()) -> None:
        if data:
            self._out.append(Deliver(side.other, data, edits))

    def _wait(self, side: Side, line: bytes, now: float, advert: Advert | Passive | Meeting | Translated) -> int:
        self._last_ref += 1
        self._streams[side].wait = Wait(self._last_ref, line, now + ANSWER_WITHIN, advert)
        return self._last_ref

    def _end(self, side: Side) -> None:
        stream = self._streams[side]
        if stream.closed and not stream.ended:
            stream.ended = True
            self._out.append(CloseWrite(side.other))

    def _release(self, side: Side, edits: tuple[Edit, ...] = (), ref: int | None = None) -> None:
        """Deliver the line that waits, if there is one."""
        stream = self._streams[side]
        if stream.wait is None:
            return
        if side is Side.CLIENT:
            self._unanswered.add(Sent(Kind.PORT, ref))
        self._deliver(side, stream.wait.line, edits)
        stream.wait = None

    def _no_answer(self, side: Side) -> None:
        if wait := self._streams[side].wait:
            self._out += (Note("ftp.unanswered", f"no answer about {wait.advert.target}"), ClosePinhole(wait.ref))
            self._release(side)

    def _close_asked(self) -> None:  # but not answered yet
        self._out += [ClosePinhole(stream.wait.ref) for stream in self._streams.values() if stream.wait]

    def _close_old(self) -> None:
        """The client wants another data connection. A server that is behind (pipelining) may yet use what is open."""
        if not len(self._unanswered):
            self._out += self._holes.close_all()

    def _revoke(self, rule: str, detail: str, side: Side, line: bytes = b"") -> None:
        self._out += (Note(rule, detail), Revoke(rule))
        self._holes.forget()  # Revoke closes them
        self._close_asked()
        self._deliver(side, line)
        self._flush()

    def _revoke_first(self, side: Side, line: bytes = b"") -> None:
        rule = "ftp.not-ftp" if side is Side.CLIENT else "ftp.greeting"
        self._revoke(rule, f"the {side}'s first line is not FTP", side, line)

    def _stand_down(self, line: bytes, *, resumable: bool) -> None:
        """The server agreed to AUTH: what follows cannot be read (RFC 4217, 4), unless CCC ends that."""
        self._out += self._holes.close_all()
        self._close_asked()
        self._deliver(Side.SERVER, line)
        if not resumable:
            self._flush()
            self._out += (Note("ftp.tls", "stood down after AUTH"), Bypass())
            return
        self._out.append(Note("ftp.tls", "stood down after AUTH"))
        self._tls = {side: TlsStream() for side in Side}
        self._unanswered = Unanswered()
        stream = self._streams[Side.SERVER]
        if behind := b"".join(stream.pop().data for _ in range(len(stream.lines))) + stream.buffer.release():
            self._encrypted(Side.SERVER, behind)  # a server does not begin TLS: this ends in Bypass

    def _encrypted(self, side: Side, data: bytes) -> bytes:
        """Deliver what is TLS; return what is clear text again."""
        watch = self._tls[side]
        clear = watch.clear_from(data)
        if watch.broken:
            self._unread = True
            self._deliver(side, data)
            self._out += (Note("ftp.not-tls", f"what the {side} sends after AUTH is not TLS"), Bypass())
            return b""
        self._deliver(side, data[:clear])
        if clear is None:
            return b""
        del self._tls[side]
        self._streams[side] = Stream()
        self._out.append(Note("ftp.clear", f"the {side} speaks in clear again (CCC)"))
        return data[clear:]

    def _flush(self) -> None:
        """Deliver everything that is held, in order, and inspect nothing from now on."""
        self._unread = True
        for side, stream in self._streams.items():
            self._release(side)
            while stream.lines:
                self._deliver(side, stream.pop().data)
            self._deliver(side, stream.buffer.release())
            self._end(side)

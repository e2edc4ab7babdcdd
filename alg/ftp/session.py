"""The FTP module (RFC 959, 2428, 4217): follows a control connection, asks for pinholes, rewrites PORT, EPRT, 227, 229.

Each direction is a queue of lines, and has a state (`alg.ftp.state`). A line that needs a pinhole holds its own
direction until the answer comes, never the other one. For a line that agrees on a data connection the session asks its
strategies, in order: transfers between servers, NAT64, conversion between the modes, and last the modes as they are.
Lines that mean nothing here are counted and relayed many at a time.

A line that no honest peer sends is relayed as it came, and revokes the flow's right to pinholes; from then on, bytes
are relayed unread. The rules (also codes of notes; the notes that revoke nothing are in docs/protocols/ftp.md):

    ftp.not-ftp   the client's first line is not a command, or is another protocol's
    ftp.greeting  the server's first bytes are not those of an FTP server
    ftp.early     PORT or EPRT before the server's greeting
    ftp.syntax    PORT or EPRT is not by the grammar, or a number is out of range
    ftp.address   PORT or EPRT names another host than the client
    ftp.family    EPRT names another address family than the flow's
    ftp.low-port  a port below 1024
    ftp.flood     more commands that have to be read, in a second or without an answer, than any client sends
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import ClassVar

from alg.address import canonical
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
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
)
from alg.bucket import Rate
from alg.ftp.commands import (
    FtpCommand,
    conceal,
    count_commands,
    lines_to_read,
    may_begin_command,
    parse_command,
    skip_blank,
)
from alg.ftp.convert import REASON, ConvertActive, ConvertPassive
from alg.ftp.nat64 import Nat64
from alg.ftp.options import FtpOptions
from alg.ftp.plain import Plain
from alg.ftp.replies import CommandKind, ReplyTracker, Sent, Unanswered, may_begin_replies, may_precede_replies
from alg.ftp.state import Control, ControlStep, after
from alg.ftp.strategy import AskFirst, LineAnswer, Pass, Strategy, Talk, Unclear, WrongLine
from alg.ftp.stream import HeldLine, LineQueue, joined
from alg.ftp.tls import TlsStream
from alg.ftp.transfers import Transfers
from alg.lines import Lines

ANSWER_WITHIN = 5.0  # seconds for Opened or Refused
LINE_WITHIN = 5.0  # seconds for the rest of a line: a peer that does not speak in lines must not hang on us
MOST_HELD = 65536  # bytes behind a line that waits
MOST_READ = 1000.0  # commands a second that have to be read, on average, and twice as many at once
_MOST_BEFORE = 1000  # lines of a server before its greeting
_DATA_DONE = (226, 425, 426)  # of a data connection: closed, not opened, aborted
_READ, _READ_ALL = lines_to_read(transfers=False), lines_to_read(transfers=True)


class FtpModule:
    """One control connection, as `alg.api.AlgModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (21,)
    kinds: ClassVar[tuple[str, ...]] = ("once",)
    shown: ClassVar[bool] = True
    conceal = staticmethod(conceal)
    Options = FtpOptions
    share: ClassVar[float] = 0.05  # of a processor: thousands of commands a second
    most_held: ClassVar[int] = 2 * MOST_HELD

    def __init__(self, context: FlowContext) -> None:
        options = context.options if isinstance(context.options, FtpOptions) else FtpOptions()
        published = context.inside is Side.SERVER
        client, server = canonical(context.client.host), canonical(context.server.host)
        self._talk = Talk(client, server, published, options, Unanswered(), ReplyTracker())
        self._strategies = _strategies(self._talk, context)
        converts = any(isinstance(strategy, ConvertActive) for strategy in self._strategies)
        self._read = _READ_ALL if converts else _READ
        self._rate = Rate(MOST_READ, 2 * MOST_READ)
        self._streams = {side: LineQueue() for side in Side}
        self._pinholes = _Pinholes()
        self._tls: dict[Side, TlsStream] = {}  # directions that are encrypted
        self._spoke_during_auth = False
        self._hides = False  # of the server's reply the client gets to see the last line only, which we make
        self._now = 0.0
        self._out: list[Command] = []

    def deadline(self) -> float | None:
        """Return when a pending answer or an unfinished line is given up, or None."""
        times = [stream.hold.deadline for stream in self._streams.values() if stream.hold]
        times += [stream.stalls_at for stream in self._streams.values() if len(stream.buffer)]
        return min(times, default=None)

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._out = []
        self._now = event.now
        match event:
            case Received(side, data, _):
                self._received(side, data)
            case Closed(side, _):
                self._closed(side)
            case Opened():
                self._opened(event)
            case Refused(ref, _, _):
                self._refused(ref)
            case Tick():
                for side in Side:
                    self._tick(side)
        return joined(self._out)

    # --- events -----------------------------------------------------------------------------------------------------

    def _received(self, side: Side, data: bytes) -> None:
        stream = self._streams[side]
        if stream.state is Control.UNREAD:
            self._deliver(side, data)
            return
        if stream.state is Control.TLS:
            data = self._encrypted(side, data)
            if not data:
                return
            stream = self._streams[side]
        stream.push(stream.buffer.feed(data))
        stream.stalls_at = self._now + LINE_WITHIN
        self._advance(side)
        while stream.hold and stream.waiting > MOST_HELD:
            self._no_answer(side)
            self._advance(side)

    def _closed(self, side: Side) -> None:
        stream = self._streams[side]
        stream.closed = True
        if rest := stream.buffer.release():
            stream.push([Lines(rest, whole=False)])
        self._advance(side)

    def _opened(self, event: Opened) -> None:
        for side, stream in self._streams.items():
            if (hold := stream.hold) and hold.ref == event.ref:
                try:
                    edits = hold.ask.opened(event)
                except ValueError as error:
                    self._out += (Note("ftp.unwritable", str(error)), ClosePinhole(event.ref))
                    self._release(side, hold.ask.otherwise)
                else:
                    self._pinholes.add(event.ref)
                    if side is Side.SERVER:
                        self._out += self._pinholes.expect(event.ref)
                    self._release(side, edits, event.ref)
                self._advance(side)
                return
        if event.ref not in self._pinholes:
            self._out.append(ClosePinhole(event.ref))  # too late: its line has gone out as it was

    def _refused(self, ref: int) -> None:
        for side, stream in self._streams.items():
            if (hold := stream.hold) and hold.ref == ref:
                if hold.ask.refused is not None:
                    self._revoke(hold.ask.refused, side)
                    return
                self._release(side, hold.ask.otherwise)
                self._advance(side)

    def _tick(self, side: Side) -> None:
        stream = self._streams[side]
        if stream.hold and stream.hold.deadline <= self._now:
            self._no_answer(side)
        if len(stream.buffer) and stream.stalls_at <= self._now:
            stream.push([Lines(stream.buffer.release(), whole=False)])
        self._advance(side)

    # --- lines ------------------------------------------------------------------------------------------------------

    def _advance(self, side: Side) -> None:
        """Handle what has come from `side`, up to a line that has to wait."""
        stream = self._streams[side]
        while stream.queue and stream.state is not Control.WAITING:
            lines = stream.queue[0]
            if not lines.whole:
                stream.at = len(lines.data)
                self._piece(side, lines.data)
            elif side is Side.CLIENT:
                self._commands(stream, lines.data)
            else:
                self._replies(stream, lines.data)
            stream.drop_done()
        if stream.state is Control.WAITING:
            return
        if stream.state is Control.AUTH:
            self._spoke_during_auth = self._spoke_during_auth or len(stream.buffer) > 0
            self._deliver(side, stream.buffer.release())  # may be TLS already, which knows no lines
        elif len(stream.buffer) and not stream.spoke and not self._may_begin(side, stream.buffer.beginning(256)):
            self._revoke_first(side)
        self._end(side)

    def _piece(self, side: Side, data: bytes) -> None:
        """Relay a part of a line that is not read."""
        stream = self._streams[side]
        self._spoke_during_auth = self._spoke_during_auth or stream.state is Control.AUTH
        if not (stream.spoke or stream.closed):
            self._revoke_first(side, data)
        elif side is Side.SERVER:
            self._deliver_text(data)
        else:
            self._deliver(side, data)

    def _may_begin(self, side: Side, beginning: bytes) -> bool:
        if side is Side.CLIENT:
            return may_begin_command(beginning)
        return may_begin_replies(beginning) or self._may_be_banner(beginning)

    def _may_be_banner(self, data: bytes) -> bool:
        """Whether `data` may be text before the greeting: some servers put a banner there (inetd), and clients skip it.
        The client must be silent so far, or it could be an echo of what it sent."""
        client = self._streams[Side.CLIENT]
        silent = not (client.spoke or client.queue or len(client.buffer) or self._talk.greeted)
        return silent and may_precede_replies(data)

    # --- commands of the client -------------------------------------------------------------------------------------

    def _commands(self, stream: LineQueue, lines: bytes) -> None:
        """Handle whole lines of the client. Those that mean nothing are delivered together."""
        while stream.at < len(lines):
            begun = stream.at
            if stream.state is Control.AUTH:
                self._spoke_during_auth = True
                stream.at = len(lines)
                self._deliver(Side.CLIENT, lines[begun:])
                return
            if stream.state is Control.GREETING:
                stream.at = skip_blank(lines, begun)
            else:
                found = self._read.search(lines, begun)
                stream.at = len(lines) if found is None else found.start()
                self._goes_on(count_commands(lines[begun : stream.at]))
            if stream.at > begun:
                self._deliver(Side.CLIENT, lines[begun : stream.at])
                continue
            stream.at = lines.index(b"\n", begun) + 1
            self._command(stream, lines[begun : stream.at])
            if stream.state not in (Control.COMMANDS, Control.AUTH):
                return

    def _command(self, stream: LineQueue, line: bytes) -> None:
        """Handle a line of the client that has to be read."""
        talk = self._talk
        command = parse_command(line)
        if stream.state is Control.GREETING:
            if command is None or command.foreign:
                self._revoke_first(Side.CLIENT, line)
                return
            stream.spoke = True
            self._step(Side.CLIENT, ControlStep.PROVED)
        self._goes_on(1, others=0)
        if command is None:
            self._do(Side.CLIENT, line, Pass())
            return
        if not self._rate.take(None, self._now) or talk.unanswered.full:
            self._revoke(WrongLine("ftp.flood", "more commands than a client sends"), Side.CLIENT, line)
            return
        if command.ends_data:
            self._close_old()
        try:
            self._do(Side.CLIENT, line, self._asked_of_command(command, line))
        except WrongLine as wrong:
            self._revoke(wrong, Side.CLIENT, line)
            return
        if command.verb == "AUTH":
            self._step(Side.CLIENT, ControlStep.SENT_AUTH)

    def _asked_of_command(self, command: FtpCommand, line: bytes) -> LineAnswer:
        for strategy in self._strategies:
            if (answer := strategy.command(command, line)) is not None:
                return answer
        return Pass()

    def _goes_on(self, commands: int, others: int | None = None) -> None:
        """The client has sent more commands, of which `others` (None: all) mean nothing. So it took the latest line of
        the server for the end of a reply, if it looked like one."""
        if not commands:
            return
        talk = self._talk
        if talk.replies.within is not None and (code := talk.replies.resume()) is not None:
            self._hides = False
            talk.unanswered.answer_odd(code)
        talk.unanswered.add_others(commands if others is None else others)

    # --- replies of the server --------------------------------------------------------------------------------------

    def _replies(self, stream: LineQueue, lines: bytes) -> None:
        """Handle whole lines of the server. Those that mean nothing are delivered together."""
        talk, replies = self._talk, self._talk.replies
        begun = at = stream.at  # what is between them can go
        while at < len(lines):
            to = len(lines)
            if stream.state is Control.GREETING and replies.within is None:
                to = lines.index(b"\n", at) + 1
                if not self._is_good_first(stream, lines[at:to]):
                    stream.at = to
                    self._revoke_first(Side.SERVER, lines[begun:to])
                    return
            awaited = stream.state is Control.GREETING or self._pinholes.is_awaited or len(talk.unanswered) > 0
            found = replies.find(lines, at, to, awaited)
            if found is None or found.start() > at:
                end = to if found is None else found.start()
                replies.pass_text(lines, at, end)
                at = end
                continue
            end = lines.index(b"\n", found.end() - 1) + 1
            code = replies.take(found)
            if code is None:
                if replies.within in (b"227", b"229"):
                    self._deliver_text(lines[begun:at])
                    begun = at
                    self._hides = self._is_replaced(int(replies.within))
                replies.pass_text(lines, at, end)
                at = end
                continue
            if self._is_plain(stream, code):
                talk.unanswered.answer(code)
                at = end
                continue
            self._deliver_text(lines[begun:at])
            self._hides = False
            stream.at = end
            self._reply(stream, code, lines[at:end])
            if stream.state not in (Control.GREETING, Control.COMMANDS):
                return
            begun = at = end
        stream.at = at
        self._deliver_text(lines[begun:at])

    def _is_good_first(self, stream: LineQueue, line: bytes) -> bool:
        """Whether a line may come before the greeting, or be it."""
        stream.before += 1
        if stream.before > _MOST_BEFORE:
            return False
        if may_begin_replies(line):
            stream.spoke = True
        return stream.spoke or self._may_be_banner(line)

    def _is_plain(self, stream: LineQueue, code: int) -> bool:
        """Whether the reply means nothing to the gateway."""
        if stream.state is Control.GREETING or (code in _DATA_DONE and self._pinholes.is_awaited):
            return False
        return self._talk.unanswered.is_plain(code)

    def _is_replaced(self, code: int) -> bool:
        sent = self._talk.unanswered.expects(code)
        return sent is not None and any(strategy.replaces(sent, code) for strategy in self._strategies)

    def _reply(self, stream: LineQueue, code: int, line: bytes) -> None:
        """Handle the last line of a reply that means something."""
        if stream.state is Control.GREETING and not self._talk.greeted:
            # 120 and a refusal (421, 5xx) are no greeting yet (RFC 959, 5.4); any other code is one, whatever it says.
            if code < 400 and code != 120:
                self._talk.greeted = True
                self._step(Side.SERVER, ControlStep.PROVED)
            self._deliver(Side.SERVER, line)
            return
        if stream.state is Control.GREETING:
            self._step(Side.SERVER, ControlStep.PROVED)
        if code in _DATA_DONE:
            self._out += self._pinholes.expect(None)
        sent = self._talk.unanswered.answer(code)
        if sent is None:
            self._deliver(Side.SERVER, line)
            return
        if sent.kind is CommandKind.AUTH and code < 400:
            self._stand_down(line, resumable=code == 234 and not self._spoke_during_auth)
            return
        if sent.kind is CommandKind.AUTH:
            self._spoke_during_auth = False
            self._step(Side.CLIENT, ControlStep.AUTH_REFUSED)
        elif sent.kind is CommandKind.EPSV_ALL and code >= 400:
            self._talk.epsv_all = False
        if sent.ref in self._pinholes:
            self._out += self._pinholes.expect(sent.ref)
            if code >= 400:
                self._out += self._pinholes.expect(None)
        try:
            self._do(Side.SERVER, line, self._asked_of_reply(sent, code, line))
        except Unclear as unclear:
            self._do(Side.SERVER, line, Pass(before=(Note(unclear.rule, str(unclear)),)))
        except WrongLine as wrong:
            self._revoke(wrong, Side.SERVER, line)

    def _asked_of_reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer:
        if code in (227, 229) and (sent.kind is CommandKind.PORT or self._talk.unanswered.has(CommandKind.AUTH)):
            return Pass()
        for strategy in self._strategies:
            if (answer := strategy.reply(sent, code, line)) is not None:
                return answer
        return Pass()

    # --- what is done -----------------------------------------------------------------------------------------------

    def _do(self, side: Side, line: bytes, answer: LineAnswer) -> None:
        self._out += answer.before
        if isinstance(answer, AskFirst):
            self._streams[side].hold = HeldLine(answer, line, self._now + ANSWER_WITHIN)
            self._step(side, ControlStep.ASKED)
            self._out.append(answer.question)
            return
        if side is Side.CLIENT:
            self._talk.unanswered.add(answer.sent)
        self._deliver(side, line, answer.edits)
        self._out += answer.after

    def _step(self, side: Side, step: ControlStep) -> None:
        stream = self._streams[side]
        stream.state = after(stream.state, step)

    def _deliver(self, side: Side, data: bytes, edits: tuple[Edit, ...] = ()) -> None:
        if data:
            self._out.append(Deliver(side.other, data, edits))

    def _deliver_text(self, data: bytes) -> None:
        """Deliver what the server sends apart from the last lines of replies that mean something."""
        self._deliver(Side.SERVER, data, (Edit(0, len(data), b"", REASON),) if self._hides else ())

    def _end(self, side: Side) -> None:
        stream = self._streams[side]
        if stream.closed and not stream.ended:
            stream.ended = True
            self._out.append(CloseWrite(side.other))

    def _release(self, side: Side, edits: tuple[Edit, ...], ref: int | None = None) -> None:
        """Deliver the line that is held, if there is one. `ref`: the pinhole that is open for it."""
        stream = self._streams[side]
        hold = stream.hold
        if hold is None:
            return
        stream.hold = None
        self._step(side, ControlStep.ANSWERED)
        if side is Side.CLIENT:
            kind = hold.ask.sent_otherwise if ref is None else hold.ask.sent
            self._talk.unanswered.add(Sent(kind, ref))
        self._deliver(side, hold.line, edits)

    def _no_answer(self, side: Side) -> None:
        if hold := self._streams[side].hold:
            self._out += (Note("ftp.unanswered", f"no answer about {hold.ask.target}"), ClosePinhole(hold.ref))
            self._release(side, hold.ask.otherwise)

    def _close_asked(self) -> None:  # but not answered yet
        self._out += [ClosePinhole(stream.hold.ref) for stream in self._streams.values() if stream.hold]

    def _close_old(self) -> None:
        """Close earlier pinholes, because the client wants another data connection. If the server still has commands to
        answer (pipelining), it may yet use them."""
        if not len(self._talk.unanswered):
            self._out += self._pinholes.close_all()

    def _revoke(self, wrong: WrongLine, side: Side, line: bytes = b"") -> None:
        self._out += (Note(wrong.rule, str(wrong)), Revoke(wrong.rule))
        self._pinholes.forget()  # Revoke closes them
        self._close_asked()
        self._deliver(side, line)
        self._flush()

    def _revoke_first(self, side: Side, line: bytes = b"") -> None:
        rule = "ftp.not-ftp" if side is Side.CLIENT else "ftp.greeting"
        self._revoke(WrongLine(rule, f"the {side}'s first line is not FTP"), side, line)

    def _flush(self) -> None:
        """Deliver everything that is held, in order, and read nothing from now on."""
        for side, stream in self._streams.items():
            self._release(side, stream.hold.ask.otherwise if stream.hold else ())
            self._step(side, ControlStep.GIVEN_UP)
            self._deliver(side, stream.take_all())
            self._end(side)

    # --- TLS --------------------------------------------------------------------------------------------------------

    def _stand_down(self, line: bytes, *, resumable: bool) -> None:
        """The server agreed to AUTH: what follows cannot be read (RFC 4217, 4), unless CCC ends that."""
        self._out += self._pinholes.close_all()
        self._close_asked()
        self._deliver(Side.SERVER, line)
        if not resumable:
            self._flush()
            self._out += (Note("ftp.tls", "stood down after AUTH"), Bypass())
            return
        self._out.append(Note("ftp.tls", "stood down after AUTH"))
        self._tls = {side: TlsStream() for side in Side}
        for side in Side:
            self._step(side, ControlStep.AUTH_AGREED)
        self._talk.unanswered = Unanswered()
        if behind := self._streams[Side.SERVER].take_all():
            self._encrypted(Side.SERVER, behind)  # a server does not begin TLS: this ends in Bypass

    def _encrypted(self, side: Side, data: bytes) -> bytes:
        """Deliver what is TLS, and return what is clear text again."""
        watch = self._tls[side]
        clear = watch.clear_from(data)
        if watch.broken:
            self._deliver(side, data)
            for either in Side:
                self._step(either, ControlStep.GIVEN_UP)
            self._out += (Note("ftp.not-tls", f"what the {side} sends after AUTH is not TLS"), Bypass())
            return b""
        self._deliver(side, data[:clear])
        if clear is None:
            return b""
        del self._tls[side]
        self._streams[side] = LineQueue(after(Control.TLS, ControlStep.CLEAR))
        self._out.append(Note("ftp.clear", f"the {side} speaks in clear again (CCC)"))
        return data[clear:]


class _Pinholes:
    """The open pinholes of a session, by `ref`. One of them is for the server's next data connection; clients that
    pipeline have more."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._next: int | None = None

    def __contains__(self, ref: int | None) -> bool:
        return ref in self._open

    @property
    def is_awaited(self) -> bool:
        """Whether one of them is for the next data connection."""
        return self._next is not None

    def add(self, ref: int) -> None:
        self._open.add(ref)

    def forget(self) -> None:
        """Forget all of them, because they were closed elsewhere."""
        self._open.clear()

    def close_all(self) -> list[Command]:
        closed: list[Command] = [ClosePinhole(ref) for ref in sorted(self._open)]
        self._open.clear()
        return closed

    def expect(self, ref: int | None) -> list[Command]:
        """The server's next data connection is that of `ref`, or of none: close the pinhole before it."""
        before, self._next = self._next, ref
        if before is None or before == ref or before not in self._open:
            return []
        self._open.discard(before)
        return [ClosePinhole(before)]


def _strategies(talk: Talk, context: FlowContext) -> list[Strategy]:
    """Return the strategies in the order in which they are asked."""
    options = talk.options
    nat64 = talk.server.version == 6 and any(talk.server in ipaddress.ip_network(prefix) for prefix in options.nat64)
    strategies: list[Strategy] = []
    if context.transfers:
        strategies.append(Transfers(talk))
    if nat64:
        strategies.append(Nat64(talk))
    if options.convert == "active" or nat64:
        strategies.append(ConvertActive(talk))
    if options.convert == "passive" and not talk.published and talk.client.version == 4:
        strategies.append(ConvertPassive(talk))
    return [*strategies, Plain(talk)]

"""`IrcModule`: direct connections between clients (DCC) that are offered over an IRC connection.

A client's offer names an address and a port of its own, at which somebody is to connect. That port gets a public one,
for one connection of anybody (the server hides who the other one is), and the offer names it. RESUME and ACCEPT, which
name the offer's port too, are translated: clients find their own offers by it.

Rules that end the flow's right to pinholes: irc.not-irc (the client does not begin as IRC). Codes of notes beside it:
irc.tls, irc.address, irc.early, irc.many, irc.long, irc.refused, irc.unanswered (untouched), irc.published.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from alg.address import Address, Endpoint, canonical, is_private
from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
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
from alg.irc.dcc import LONGEST, MAY_HOLD, Dcc, Offer, read_dcc, written
from alg.irc.offers import TTL, Offers, OpenOffer
from alg.irc.options import IrcOptions
from alg.lines import LineBuffer, Lines
from alg.output import Output

LONGEST_LINE = 8704  # bytes of a line with its tags (IRCv3 message tags: 8191)
ANSWER_WITHIN = 5.0  # seconds for Opened or Refused
LINE_WITHIN = 5.0  # seconds for the rest of a line
MOST_WAITING = 65536  # bytes behind an offer that waits
ADDRESS, PORT = "irc.address", "irc.port"
_FIRST = (b"CAP", b"PASS", b"NICK", b"USER", b"AUTHENTICATE", b"STARTTLS", b"WEBIRC")
_BEGINS = re.compile(rb"(?:%b)(?: [^\r\n]*)?\r?\n" % b"|".join(_FIRST), re.IGNORECASE)
_WELCOME = re.compile(rb"^(?:@[^ \r\n]+ +)?:[^ \r\n]+ +001 ", re.MULTILINE)
_STARTTLS = re.compile(rb"^(?:@[^ \r\n]+ +)?:[^ \r\n]+ +670 ", re.MULTILINE)
_TLS = 0x16


@dataclass(slots=True)
class HeldOffer:
    """An offer that waits for its port, with the bytes behind it. `offer`: the way in which it is read; `due`: the time
    at which it is sent on as it came."""

    line: bytes
    dcc: Dcc
    offer: Offer
    ref: int
    due: float


class IrcModule:
    """One connection between a client and an IRC server, as `alg.api.AlgModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (6667,)
    kinds: ClassVar[tuple[str, ...]] = ("once", "anybody")
    Options: ClassVar[type[IrcOptions]] = IrcOptions
    most_held: ClassVar[int] = LONGEST_LINE + MOST_WAITING

    def __init__(self, context: FlowContext) -> None:
        options = context.options if isinstance(context.options, IrcOptions) else IrcOptions()
        self._outbound = options.outbound
        self._client: Address = canonical(context.client.host)
        self._published = context.inside is not Side.CLIENT
        self._buffers = {side: LineBuffer(LONGEST_LINE) for side in Side}
        self._since = dict.fromkeys(Side, 0.0)  # when a side has last said something
        self._waiting: deque[Lines] = deque()  # what the client said behind an offer that waits
        self._held: HeldOffer | None = None
        self._offers = Offers()
        self._begun = self._welcome = False
        self._outbound_ref = -1  # those that lead out count downwards
        self._now = 0.0
        self._out = Output()

    def deadline(self) -> float | None:
        """See `AlgModule.deadline`."""
        if self._out.over:
            return None
        times = [self._since[side] + LINE_WITHIN for side in Side if len(self._buffers[side])]
        times += [self._held.due] if self._held is not None else []
        offers = self._offers.deadline()
        return min([*times, offers] if offers is not None else times, default=None)

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
                self._opened(ref, public)
            case Refused(ref, rule, _):
                self._refused(ref, rule)
            case Tick(now):
                self._tick(now)
        for side in Side:
            self._end(side)
        return self._out.take()

    # --- lines ------------------------------------------------------------------------------------------------------

    def _received(self, side: Side, data: bytes) -> None:
        if self._published:
            self._out.note("irc.published", "servers inside are not read")
            self._out.add(Deliver(side.other, data))
            self._leave()
        elif side is Side.CLIENT and not self._begun and not len(self._buffers[side]) and data[0] == _TLS:
            self._out.note("irc.tls", "TLS from the beginning")
            self._out.add(Deliver(Side.SERVER, data))
            self._leave()
        else:
            found = self._buffers[side].feed(data)
            if side is Side.SERVER:
                self._from_server(found)
            else:
                self._waiting += found
                self._from_client()
                if not self._begun and not self._out.over and not _may_begin(self._buffers[side].beginning(13)):
                    # Not at the end of its line: what is no text may have none, and would be held for seconds.
                    rest = self._buffers[side].release()
                    self._give_up("irc.not-irc", "the client does not begin as one", rest)

    def _from_client(self) -> None:
        """Deliver what the client said, up to the next offer that has to wait."""
        while self._waiting and self._held is None and not self._out.over:
            data, whole = self._waiting.popleft()
            if not self._begun:
                first = data.partition(b"\n")
                if not whole or not _BEGINS.fullmatch(first[0] + first[1]):
                    self._give_up("irc.not-irc", "the client does not begin as one", data)
                    return
                self._begun = True
            if not whole or MAY_HOLD.search(data) is None:
                self._out.add(Deliver(Side.SERVER, data))
                continue
            lines = _split(data)
            for number, line in enumerate(lines, 1):
                if self._line(line):
                    if rest := b"".join(lines[number:]):
                        self._waiting.appendleft(Lines(rest))
                    break

    def _line(self, line: bytes) -> bool:
        """Handle a line of the client. Returns whether it waits for a port, and with it everything behind it."""
        dcc = read_dcc(line)
        edits: list[Edit] = []
        if dcc is not None:
            if (offer := self._own_offer(dcc)) is not None and self._opens(line, dcc, offer):
                return True
            for word in dcc.resumed() if dcc.kind == b"ACCEPT" else ():
                known = self._offers.by_port(int(word.text))
                if known is not None and known.public is not None:
                    edits = _edit(word.text, word.span, str(known.public.port).encode(), PORT)
                    break
        if dcc is not None and len(line) - dcc.tags + _growth(edits) > LONGEST:
            edits = []
        self._out.add(Deliver(Side.SERVER, line, tuple(edits)))
        return False

    def _own_offer(self, dcc: Dcc) -> Offer | None:
        """Return the way to read the offer in which the client names itself, or a public address, which may be the
        router's. None: there is no such way."""
        offers = list(dcc.offers())
        own = [offer for offer in offers if offer.address in (self._client, None)]
        if not own:
            own = [
                offer for offer in offers if offer.address is not None and _may_be_public(offer.address, self._client)
            ]
        if not own:
            if offers:
                self._out.note("irc.address", "an offer names another host, and is left alone")
            return None
        return own[0] if len(own) == 1 else None

    def _opens(self, line: bytes, dcc: Dcc, offer: Offer) -> bool:
        """Ask for a port for the offer. Returns whether it was asked for."""
        if not self._welcome:
            self._out.note("irc.early", "an offer before the server's welcome")
            return False
        if (known := self._offers.by_port(offer.port)) is not None:
            self._offers.end(known.ref)
            self._out.add(ClosePinhole(known.ref))
        opened = self._offers.add(offer.address_word.text, offer.port, self._now)
        if opened is None:
            self._out.note("irc.many", "the connection has as many offers as it may have")
            return False
        reason = "irc.send" if dcc.is_file else "irc.chat"
        self._held = HeldOffer(line, dcc, offer, opened.ref, self._now + ANSWER_WITHIN)
        target = Endpoint(str(self._client), offer.port)
        self._out.add(OpenPinhole(opened.ref, target, None, "tcp", TTL, reason))
        return True

    def _opened(self, ref: int, public: Endpoint) -> None:
        held, opened = self._held, self._offers.get(ref)
        if opened is None or held is None or held.ref != ref:
            if opened is not None or ref > 0:
                self._offers.end(ref)
                self._out.add(ClosePinhole(ref))
            return
        address = canonical(public.host)
        stated = held.offer.address
        edits = _edit(held.offer.port_word.text, held.offer.port_word.span, str(public.port).encode(), PORT)
        if stated in (self._client, None):
            word = held.offer.address_word
            edits = [*_edit(word.text, word.span, written(address), ADDRESS), *edits]
        if stated not in (self._client, None, address):
            self._close(opened, "irc.address", "an offer names another host, and is left alone")
            edits = []
        elif len(held.line) - held.dcc.tags + _growth(edits) > LONGEST:
            self._close(opened, "irc.long", "an offer would be too long with its public port")
            edits = []
        else:
            opened.public = public
        self._release(edits)

    def _close(self, opened: OpenOffer, code: str, detail: str) -> None:
        self._offers.end(opened.ref)
        self._out.add(ClosePinhole(opened.ref))
        self._out.note(code, detail)

    def _refused(self, ref: int, rule: str) -> None:
        self._offers.end(ref)
        self._out.note("irc.refused", rule)
        if self._held is not None and self._held.ref == ref:
            self._release([])

    def _release(self, edits: list[Edit]) -> None:
        """Send on the offer that is held, and the bytes behind it."""
        held = self._held
        if held is not None:
            self._held = None
            self._out.add(Deliver(Side.SERVER, held.line, tuple(edits)))
            self._from_client()

    def _from_server(self, found: list[Lines]) -> None:
        for data, whole in found:
            if self._out.over:
                self._out.add(Deliver(Side.CLIENT, data))
                continue
            if whole and not self._welcome and _WELCOME.search(data):
                self._welcome = True
            if whole and MAY_HOLD.search(data):
                for line in _split(data):
                    self._out.add(Deliver(Side.CLIENT, line, tuple(self._edits_for_client(line))))
            else:
                self._out.add(Deliver(Side.CLIENT, data))
            if whole and not self._welcome and _STARTTLS.search(data):
                self._out.note("irc.tls", "STARTTLS")
                self._leave()

    def _edits_for_client(self, line: bytes) -> list[Edit]:
        """Return the edits that put the client's own endpoints back where a line of the server names its offers: in a
        RESUME, and in an echo of the offer."""
        dcc = read_dcc(line)
        if dcc is None:
            return []
        for word in dcc.resumed() if dcc.kind == b"RESUME" else ():
            known = self._offers.by_public_port(int(word.text))
            if known is not None:
                return _edit(word.text, word.span, str(known.port).encode(), PORT)
        for offer in dcc.offers():
            known = self._offers.by_public_port(offer.port)
            if known is not None and known.public is not None and offer.address == canonical(known.public.host):
                word, port = offer.address_word, offer.port_word
                back = _edit(word.text, word.span, known.address, ADDRESS)
                return [*back, *_edit(port.text, port.span, str(known.port).encode(), PORT)]
            if self._outbound and offer.address is not None and offer.address.version == self._client.version:
                reason = "irc.send" if dcc.is_file else "irc.chat"
                target = Endpoint(str(offer.address), offer.port)
                self._out.add(OpenOutbound(self._outbound_ref, target, "tcp", TTL, reason))
                self._outbound_ref -= 1
                break
        return []

    # --- the end ----------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self._held is not None and self._held.due <= now:
            self._out.note("irc.unanswered", "an offer goes as it came: nobody has said whether its port is open")
            self._offers.end(self._held.ref)
            self._out.add(ClosePinhole(self._held.ref))
            self._release([])
        self._offers.tick(now)
        for side in Side:
            if len(self._buffers[side]) and self._since[side] + LINE_WITHIN <= now:
                part = Lines(self._buffers[side].release(), whole=False)
                if side is Side.SERVER:
                    self._from_server([part])
                else:
                    self._waiting.append(part)
                    self._from_client()

    def _end(self, side: Side) -> None:
        if not self._out.is_to_end(side) or (side is Side.CLIENT and self._held is not None):
            return
        if rest := self._buffers[side].release():
            self._out.deliver(side.other, rest)
        self._out.end(side)

    def _give_up(self, rule: str, detail: str, data: bytes) -> None:
        self._out.add(Note(rule, detail), Revoke(rule), Deliver(Side.SERVER, data))
        self._leave()

    def _leave(self) -> None:
        """Deliver all bytes that are held, and stop reading."""
        self._out.over = True
        rest = self._held.line if self._held is not None else b""
        rest += b"".join(lines.data for lines in self._waiting)
        self._held = None
        self._waiting.clear()
        for side, data in ((Side.CLIENT, rest), (Side.SERVER, b"")):
            data += self._buffers[side].release()
            self._out.deliver(side.other, data)
        for side in Side:
            self._end(side)
        self._out.add(Bypass())


def _may_begin(head: bytes) -> bool:
    """Whether these first bytes of a connection may be the beginning of a client's first line."""
    words = ((head[: len(word)].upper(), head[len(word) : len(word) + 1], word) for word in _FIRST)
    return any(word.startswith(said) and behind in (b"", b" ", b"\r", b"\n") for said, behind, word in words)


def _split(data: bytes) -> list[bytes]:
    """Split bytes into lines that end in LF. A CR without LF ends no line."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _edit(before: bytes, span: tuple[int, int], after: bytes, reason: str) -> list[Edit]:
    return [Edit(*span, after, reason)] if before != after else []


def _growth(edits: Sequence[Edit]) -> int:
    return sum(len(edit.replacement) - (edit.end - edit.start) for edit in edits)


def _may_be_public(address: Address, client: Address) -> bool:
    """Whether an address may be the router's public one, because it is not in a network like the client's."""
    if address.version != client.version or address.is_multicast or address.is_loopback or address.is_unspecified:
        return False
    return not is_private(address)

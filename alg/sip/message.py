"""A SIP message as spans over its original bytes (RFC 3261, 7 and 25). Nothing is ever written anew.

`parse` is strict: what is not certain is `Malformed`, and is then relayed as it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

from alg.sip.grammar import (
    ADDR_SPEC,
    BLANK,
    BLANKS,
    CALL_ID,
    COMMA,
    CSEQ,
    HEADER,
    NAME,
    NAME_ADDR,
    NUMBER,
    PARAM,
    REQUEST,
    SIP_URI,
    STATUS,
    VIA,
)

Span = tuple[int, int]

_KNOWN = {
    b"via": "via", b"v": "via",
    b"from": "from", b"f": "from",
    b"to": "to", b"t": "to",
    b"call-id": "call-id", b"i": "call-id",
    b"cseq": "cseq",
    b"contact": "contact", b"m": "contact",
    b"content-length": "content-length", b"l": "content-length",
    b"content-type": "content-type", b"c": "content-type",
    b"content-encoding": "content-encoding", b"e": "content-encoding",
    b"route": "route",
    b"record-route": "record-route",
    b"path": "path",
    b"expires": "expires",
    b"session-expires": "session-expires", b"x": "session-expires",
    b"max-forwards": "max-forwards",
    b"require": "require",
    b"date": "date",
}  # fmt: skip
_NEEDED = ("via", "from", "to", "call-id", "cseq")
_ONCE = frozenset(
    (
        "from",
        "to",
        "call-id",
        "cseq",
        "content-length",
        "content-type",
        "max-forwards",
        "expires",
        "session-expires",
        "date",
    )
)
_MOST_SEQUENCE = 2**31 - 1
_REMEMBERED = 4096  # texts
_SHORT = 256  # bytes: longer ones are read anew, so that nobody fills the memory

T = TypeVar("T")


def remembered(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """`read`, with what it says of short texts remembered: the messages of a dialog repeat most of their headers."""
    recall = lru_cache(_REMEMBERED)(read)

    def ask(text: bytes) -> T:
        return recall(text) if len(text) <= _SHORT else read(text)

    return ask


class Malformed(Exception):
    """Not a SIP message, or not one that can be read in one way only; the text says why."""


class HostPort(NamedTuple):
    """A host and perhaps a port that stand in `data[start:end]`; `host` as written, without brackets."""

    host: str
    port: int | None
    start: int
    end: int


class Via(NamedTuple):
    """A value of Via: `params` is the span behind sent-by."""

    transport: str
    sent_by: HostPort
    params: Span


class Addr(NamedTuple):
    """A value of From, To, Contact, Route, ...: spans of its URI and of what follows (`;tag=...`)."""

    uri: Span
    params: Span


class Message:
    """One message in `data[start:end]`, its body in `data[body:end]`. Made by `parse`.

    `method` is the request's, or the one that a response answers (CSeq); `status` is 0 where `is_request`. `headers`
    holds the spans of the values of the known headers by their long names in lower case, in order; `first` the first
    value of each.
    """

    __slots__ = (
        "_addrs",
        "_vias",
        "body",
        "call_id",
        "cseq",
        "data",
        "end",
        "first",
        "headers",
        "is_request",
        "method",
        "start",
        "status",
        "uri",
    )

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.start = start
        self.is_request = False
        self.status = 0
        self.method = b""
        self.uri: Span = (0, 0)
        self.headers: dict[str, list[Span]] = {}
        self.first: dict[str, bytes] = {}
        self.call_id = b""
        self.cseq = 0
        self.body = 0
        self.end = 0
        self._vias: list[Via] = []
        self._addrs: dict[str, list[Addr]] = {}

    def text(self, span: Span) -> bytes:
        return self.data[span[0] : span[1]]

    def vias(self) -> list[Via]:
        """All values of Via, the topmost first. Malformed if one is not by the grammar."""
        if not self._vias:
            for start, end in self.headers.get("via", ()):
                for match in _values(VIA, self.data, start, end):
                    self._vias.append(Via(match[1].decode().upper(), _host_port(match, 2, 3), match.span(4)))
        return self._vias

    def addrs(self, name: str) -> list[Addr]:
        """All values of a header of addresses; `Contact: *` has none. Malformed if one is not by the grammar."""
        if (found := self._addrs.get(name)) is not None:
            return found
        found = []
        for start, end in self.headers.get(name, ()):
            value = self.data[start:end]
            if name == "contact" and value.strip() == b"*":
                continue
            for uri, params in _read_addrs(value):
                found.append(Addr((start + uri[0], start + uri[1]), (start + params[0], start + params[1])))
        self._addrs[name] = found
        return found

    def is_star(self) -> bool:
        """Whether there is `Contact: *` and no other contact (RFC 3261, 10.2.2)."""
        spans = self.headers.get("contact", ())
        return len(spans) == 1 and self.text(spans[0]).strip() == b"*"

    def number(self, name: str) -> int | None:
        """The number at the beginning of the header `name`, or None."""
        for span in self.headers.get(name, ()):
            if match := NUMBER.match(self.data, *span):
                return int(match[1][:18])
        return None

    def param(self, params: Span, name: bytes) -> tuple[bytes, Span] | None:
        """The value of a parameter and its span; without a value b"" and the empty span behind the name."""
        return _param(self.data, params, name)

    def tag(self, name: str) -> bytes:
        """The tag of From or To, or b""."""
        return _tag(self.first[name])


class Uri(NamedTuple):
    """A sip or sips URI (`scheme` and `params`, as "b=c", in lower case); `place` counts from the URI's beginning."""

    scheme: str
    place: HostPort
    params: frozenset[bytes]
    has_headers: bool


@remembered
def read_uri(text: bytes) -> Uri | None:
    """Read a URI. None for one that is neither sip nor sips; Malformed for one that is, but not by the grammar."""
    match = SIP_URI.fullmatch(text)
    if match is None:
        if text[:5].lower().startswith((b"sip:", b"sips:")):
            raise Malformed("a URI")
        return None
    params = frozenset(match[4].lower().split(b";"))
    return Uri(match[1].decode().lower(), _host_port(match, 2, 3), params, match[5] is not None)


def uri_host(data: bytes, span: Span) -> HostPort | None:
    """Where host and port of a sip or sips URI stand in `data`. None for another scheme; Malformed as `read_uri`."""
    uri = read_uri(data[span[0] : span[1]])
    if uri is None:
        return None
    host, port, start, end = uri.place
    return HostPort(host, port, span[0] + start, span[0] + end)


def parse(data: bytes, start: int = 0) -> Message:
    """Read the message that begins at `start`. Without Content-Length its body goes to the end of `data`.

    Malformed if it is not by the grammar, contradicts itself, or its end is not there.
    """
    message = Message(data, start)
    at = _start_line(message)
    head_end = data.find(b"\r\n\r\n", at - 2)
    if head_end < 0:
        raise Malformed("no end of the headers")
    head_end += 2
    headers, first = message.headers, message.first
    for line in _lines(data[at:head_end]):
        length = len(line)
        known, before, value = _recalled_line(line) if length <= _SHORT else _read_line(line)
        begin = at + before
        at += length + 2
        if known is None:
            continue
        if known not in headers:
            first[known] = value
            headers[known] = [(begin, at - 2)]
        elif known in _ONCE:
            raise Malformed(f"more than one {known}")
        else:
            headers[known].append((begin, at - 2))
    if at != head_end:  # a line ends otherwise than in CR LF, or something between two headers was skipped
        raise Malformed("a header")
    message.body = head_end + 2
    message.end = _end(message)
    _check(message)
    return message


def _lines(head: bytes) -> list[bytes]:
    """The headers of `head`, each without the CR LF at its end."""
    if b"\n " in head or b"\n\t" in head:  # folded
        return [match[0][:-2] for match in HEADER.finditer(head)]
    return head.splitlines()


def _read_line(line: bytes) -> tuple[str | None, int, bytes]:
    """The header that a line is (None: one that matters not), how much stands before its value, and the value."""
    label, colon, value = line.partition(b":")
    name = label.rstrip(b" \t")
    if not colon or not NAME.fullmatch(name):
        raise Malformed("a header")
    value = value.lstrip(BLANKS)
    return _KNOWN.get(name.lower()), len(line) - len(value), value


_recalled_line = lru_cache(_REMEMBERED)(_read_line)


def _start_line(message: Message) -> int:
    data, start = message.data, message.start
    if match := STATUS.match(data, start):
        message.status = int(match[1])
    elif match := REQUEST.match(data, start):
        message.is_request = True
        message.method = match[1]
        message.uri = match.span(2)
        found = read_uri(data[message.uri[0] : message.uri[1]])
        if found and found.has_headers:
            raise Malformed("headers in the Request-URI")
    else:
        raise Malformed("the start line")
    return match.end()


def _end(message: Message) -> int:
    value = message.first.get("content-length")
    if value is None:
        return len(message.data)
    end = message.body + content_length(value)
    if end > len(message.data):
        raise Malformed("Content-Length goes beyond the end")
    return end


def content_length(value: bytes) -> int:
    """The value of Content-Length. Malformed where it is not a number of at most nine digits."""
    digits = value.rstrip(BLANKS)
    if not digits.isdigit() or len(digits) > 9:
        raise Malformed("Content-Length")
    return int(digits)


@remembered
def _cseq(value: bytes) -> tuple[int, bytes] | None:
    match = CSEQ.fullmatch(value)
    return (int(match[1]), match[2]) if match else None


@remembered
def _read_addrs(value: bytes) -> tuple[Addr, ...]:
    """The addresses of a header's value; spans count from its beginning."""
    return tuple(Addr(match.span(1), match.span(2)) for match in _values(NAME_ADDR, value, 0, len(value)))


@remembered
def _tag(value: bytes) -> bytes:
    found = _param(value, _read_addrs(value)[0].params, b"tag")
    return found[0] if found else b""


def _param(data: bytes, params: Span, name: bytes) -> tuple[bytes, Span] | None:
    for match in PARAM.finditer(data, *params):
        if match[1].lower() == name:
            if match[2] is None:
                return b"", (match.end(1), match.end(1))
            return match[2], match.span(2)
    return None


def _check(message: Message) -> None:
    first = message.first
    for name in _NEEDED:
        if name not in first:
            raise Malformed(f"no {name}")
    call_id = CALL_ID.fullmatch(first["call-id"])
    cseq = _cseq(first["cseq"])
    if call_id is None or cseq is None or cseq[0] > _MOST_SEQUENCE:
        raise Malformed("Call-ID or CSeq")
    message.call_id = call_id[1]
    if message.is_request and message.method != cseq[1]:
        raise Malformed("CSeq names another method")
    message.cseq, message.method = cseq
    if "max-forwards" in first:
        hops = first["max-forwards"].rstrip(BLANKS)
        if not hops.isdigit() or len(hops) > 4 or int(hops) > 255:
            raise Malformed("Max-Forwards")
    if "date" in first and not first["date"].strip().endswith(b"GMT"):
        raise Malformed("Date")  # RFC 3261, 20.17: no other zone
    message.vias()
    if len(_read_addrs(first["from"])) != 1 or len(_read_addrs(first["to"])) != 1:
        raise Malformed("From or To")
    message.addrs("contact")
    contacts = message.headers.get("contact", ())
    if len(contacts) > 1 and any(message.text(span).strip() == b"*" for span in contacts):
        raise Malformed("Contact * beside another")


def _values(pattern: re.Pattern[bytes], data: bytes, start: int, end: int) -> list[re.Match[bytes]]:
    """The values of a header, with commas between them; an address may stand without <>."""
    found = []
    while True:
        match = pattern.match(data, start, end)
        if match is None and pattern is NAME_ADDR:
            match = ADDR_SPEC.match(data, start, end)
        if match is None:
            raise Malformed("a value of a header")
        found.append(match)
        if match.end() == end:
            return found
        comma = COMMA.match(data, match.end(), end)
        if comma is None:
            if not BLANK.fullmatch(data, match.end(), end):
                raise Malformed("a value of a header")
            return found
        start = comma.end()


def _host_port(match: re.Match[bytes], host: int, port: int) -> HostPort:
    text = match[host].decode("ascii")
    if match[port] is None:
        return HostPort(text.strip("[]"), None, *match.span(host))
    number = int(match[port])
    if number > 65535:
        raise Malformed("a port")
    return HostPort(text.strip("[]"), number, match.start(host), match.end(port))

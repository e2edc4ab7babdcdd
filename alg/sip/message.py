"""A SIP message as spans over its original bytes (RFC 3261, 7 and 25). Nothing is ever written anew.

`parse` is strict where a span is edited or a value decides something, and blind elsewhere: where it could read
something in more than one way it raises `Malformed`, and the message is relayed as it came. docs/protocols/sip.md has
the list.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from alg.sip.grammar import (
    ADDR_SPEC,
    ANY_NAME_ADDR,
    BARE_URI,
    BLANK,
    COMMA,
    CSEQ,
    LOOSE_ADDR,
    NAME_ADDR,
    NUMBER,
    REQUEST,
    SENDER,
    SIP_URI,
    STATUS,
    VIA,
    VIA_LOOSE,
)
from alg.text.header import BLANKS, Malformed, Remembered, Span, find_empty_line, find_param, read_head

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
    b"require": "require",
}  # fmt: skip
_NEEDED = ("via", "from", "to", "call-id", "cseq")
_ONCE = frozenset(("from", "to", "call-id", "cseq", "content-length"))  # or twice the same, but for the last
_MOST_SEQUENCE = 2**32 - 1
# Methods are in capitals; some send them otherwise, and servers such as Asterisk do not mind.
_METHODS = {
    method.lower(): method
    for method in (
        b"INVITE", b"ACK", b"BYE", b"CANCEL", b"REGISTER", b"OPTIONS", b"UPDATE", b"PRACK", b"SUBSCRIBE", b"NOTIFY",
        b"REFER", b"MESSAGE", b"INFO", b"PUBLISH",
    )
}  # fmt: skip
_MOST_LOOSE = 2048  # bytes of a value that is not by the grammar, and is read all the same

# Several of these are made for each message. They are plain classes, because compiled code makes an object of one in a
# tenth of the time that a tuple with names takes.


class HostPort:
    """A host, and possibly a port, as they stand in `data[start:end]`; `host` is as written, without brackets."""

    __slots__ = ("end", "host", "port", "start")

    def __init__(self, host: str, port: int | None, start: int, end: int) -> None:
        self.host = host
        self.port = port
        self.start = start
        self.end = end

    def moved(self, by: int) -> HostPort:
        """Return the same in a text in which it stands so many bytes later."""
        return HostPort(self.host, self.port, self.start + by, self.end + by)


class Via:
    """A value of Via. `params` is the span behind sent-by."""

    __slots__ = ("params", "sent_by", "transport")

    def __init__(self, transport: str, sent_by: HostPort, params: Span) -> None:
        self.transport = transport
        self.sent_by = sent_by
        self.params = params


class Addr:
    """A value of From, To, Contact, Route, ...: the spans of its URI and of what follows (`;tag=...`)."""

    __slots__ = ("params", "uri")

    def __init__(self, uri: Span, params: Span) -> None:
        self.uri = uri
        self.params = params


class StartLine:
    """A start line: `status` of a response, or `method` and the span of the Request-URI. `is_wrong`: it is a request's,
    but the URI cannot be relied on."""

    __slots__ = ("is_request", "is_wrong", "method", "status", "uri")

    def __init__(self, status: int, method: bytes, uri: Span, is_wrong: bool) -> None:
        self.is_request = not status
        self.status = status
        self.method = method
        self.uri = uri
        self.is_wrong = is_wrong


class Message:
    """One message in `data`, with its body in `data[body:end]`. Made by `parse`.

    `method` is the request's, or the one that a response answers (CSeq); `status` is 0 if `is_request`. `headers` holds
    the spans of the values of the known headers by their long names in lower case, in order; `first` the first value of
    each. `part_length`: the length that the part with the session description tells of itself, in a body of several.
    """

    __slots__ = (
        "_addrs",
        "_via",
        "body",
        "call_id",
        "cseq",
        "data",
        "end",
        "first",
        "headers",
        "is_request",
        "method",
        "part_length",
        "status",
        "uri",
    )

    def __init__(self, data: bytes) -> None:
        self.data = data
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
        self.part_length: Span | None = None
        self._via: Via | None = None
        self._addrs: dict[str, list[Addr]] = {}

    def text(self, span: Span) -> bytes:
        return self.data[span[0] : span[1]]

    def via(self) -> Via:
        """The topmost value of Via: the sender's of a request, the receiver's of a response. The others concern other
        hops. Raises Malformed if it cannot be read."""
        if self._via is None:
            self._via = self._plain_via() or self._any_via()
        return self._via

    def _plain_via(self) -> Via | None:
        """Return the value if it is one, and its sender is told as usual: what stands before the parameters is the same
        in all messages of a phone."""
        value = self.first["via"]
        if b"," in value:
            return None
        sender, _, _ = value.partition(b";")
        known = _SENDERS.of(sender)
        if known is None:
            return None
        start, end = self.headers["via"][0]
        return Via(known.transport, known.sent_by.moved(start), (start + len(sender), end))

    def _any_via(self) -> Via:
        start, end = self.headers["via"][0]
        match = VIA.match(self.data, start, end) or VIA_LOOSE.match(self.data, start, end)
        place = _host_port(match, 2, 3) if match else None
        if match is None or place is None:
            raise Malformed("Via", start)
        return Via(match[1].decode().upper(), place, match.span(4))

    def addrs(self, name: str) -> list[Addr]:
        """Return all values of a header of addresses; `Contact: *` has none. Raises Malformed if one cannot be read."""
        if (found := self._addrs.get(name)) is not None:
            return found
        found = []
        for start, end in self.headers.get(name, ()):
            value = self.data[start:end]
            if name == "contact" and value.strip() == b"*":
                continue
            try:
                read = _ADDRS.of(value)
            except Malformed as wrong:
                read = _loose_addrs(value) or _named_uri(value) if name == "contact" else ()
                if not read:
                    raise Malformed(name, start + wrong.at) from None
            for addr in read:
                (begin, end), (behind, last) = addr.uri, addr.params
                found.append(Addr((start + begin, start + end), (start + behind, start + last)))
        self._addrs[name] = found
        return found

    def party(self, name: str) -> bytes:
        """Return the URI of From or To, as far as there is one."""
        value = self.first[name]
        uri = _PARTIES.of(value).uri
        return value[uri[0] : uri[1]]

    def readable(self, name: str) -> list[Addr]:
        """Return the values of a header of addresses that can be read. For headers of others, where one odd value does
        not matter."""
        try:
            return self.addrs(name)
        except Malformed:
            # An open quote is looked for again behind each escaped one: not in what is long.
            return [
                Addr(match.span(1), match.span(2))
                for span in self.headers[name]
                if span[1] - span[0] <= _MOST_LOOSE or b"\\" not in self.text(span)
                for match in ANY_NAME_ADDR.finditer(self.data, *span)
                if match[1] is not None
            ]

    def own_contacts(self) -> list[tuple[Addr, Uri]]:
        """Return the values of Contact that are sip or sips URIs, where they identify the sender. Raises Malformed if
        one cannot be read, or if `*` stands beside another."""
        spans = self.headers.get("contact")
        if spans is None:
            return []
        addrs = self.addrs("contact")
        if len(spans) > 1 and any(self.text(span).strip() == b"*" for span in spans):
            raise Malformed("contact * beside another", spans[0][0])
        found = []
        for addr in addrs:
            text = self.text(addr.uri)
            uri = read_uri(text)
            if uri is not None:
                found.append((addr, uri))
            elif _is_sip(text):
                raise Malformed("contact", addr.uri[0])
        return found

    def is_star(self) -> bool:
        """Whether there is `Contact: *` and no other contact (RFC 3261, 10.2.2)."""
        spans = self.headers.get("contact", ())
        return len(spans) == 1 and self.text(spans[0]).strip() == b"*"

    def number(self, name: str) -> int | None:
        """Return the number at the beginning of the header `name`. None if there is none, or two that differ."""
        found: int | None = None
        for span in self.headers.get(name, ()):
            if match := NUMBER.match(self.data, *span):
                number = int(match[1][:18])
                if found is not None and found != number:
                    return None
                found = number
        return found

    def has_option(self, name: str, option: bytes) -> bool:
        """Whether a header of option tags (Require) has `option`, in lower case."""
        return any(
            option == word.strip().lower()
            for span in self.headers.get(name, ())
            for word in self.text(span).split(b",")
        )

    def param(self, params: Span, name: bytes) -> tuple[bytes, Span] | None:
        """Return the value of a parameter and its span; for a parameter without a value b"" and the empty span behind
        the name."""
        return find_param(self.data, params, name)

    def tag(self, name: str) -> bytes:
        """Return the tag of From or To, or b""."""
        return _TAGS.of(self.first[name])


class Uri(NamedTuple):
    """A sip or sips URI (`scheme` and `params`, such as "b=c", in lower case). `place` counts from the URI's
    beginning."""

    scheme: str
    place: HostPort
    params: frozenset[bytes]
    has_headers: bool


def read_uri(text: bytes) -> Uri | None:
    """Read a URI. None if it is neither sip nor sips, or its host and port cannot be determined."""
    return _URIS.of(text)


def _read_uri(text: bytes) -> Uri | None:
    match = SIP_URI.fullmatch(text)
    place = _host_port(match, 2, 3) if match else None
    if match is None or place is None:
        return None
    params = frozenset(match[4].lower().split(b";"))
    return Uri(match[1].decode().lower(), place, params, match[5] is not None)


_URIS: Final = Remembered(_read_uri)


def _is_sip(text: bytes) -> bool:
    return text[:5].lower().startswith((b"sip:", b"sips:"))


def uri_host(data: bytes, span: Span) -> HostPort | None:
    """Return where host and port of a sip or sips URI stand in `data`. None as in `read_uri`."""
    uri = read_uri(data[span[0] : span[1]])
    if uri is None:
        return None
    return uri.place.moved(span[0])


def address_of_record(text: bytes) -> bytes:
    """Return a URI in the form in which addresses of record are compared (RFC 3261, 10.3 and 19.1.4): user without
    escapes, host in lower case, the port if it is not SIP's own."""
    return _ADDRESSES_OF_RECORD.of(text)


def _read_address_of_record(text: bytes) -> bytes:
    uri = read_uri(text)
    if uri is None:
        return text.lower()
    user = unquote_to_bytes(text[len(uri.scheme) + 1 : uri.place.start])
    port = b":%d" % uri.place.port if uri.place.port not in (None, 5060) else b""
    return user + uri.place.host.lower().rstrip(".").encode() + port


_ADDRESSES_OF_RECORD: Final = Remembered(_read_address_of_record)


def user_of_record(text: bytes) -> bytes:
    """Return the user of a sip or sips URI, without escapes and password, or the number of a tel URI; b"" without
    one."""
    return _USERS_OF_RECORD.of(text)


def _read_user_of_record(text: bytes) -> bytes:
    scheme, _, rest = text.partition(b":")
    if scheme.lower() == b"tel":
        return unquote_to_bytes(rest.partition(b";")[0])
    uri = read_uri(text)
    return unquote_to_bytes(text[len(scheme) + 1 : uri.place.start - 1].partition(b":")[0]) if uri is not None else b""


_USERS_OF_RECORD: Final = Remembered(_read_user_of_record)


def parse(data: bytes) -> Message:
    """Read the message at the beginning of `data`, perhaps behind empty lines. Without Content-Length its body goes to
    the end of `data`.

    Raises Malformed if what matters in it cannot be read or contradicts itself, or if its end is missing.
    """
    message = Message(data)
    at = _start_line(message)
    try:
        lines, message.body = read_head(data, at)
    except Malformed:
        if not data.endswith(b"\n") or find_empty_line(data, at - 1) is not None:
            raise
        lines, _ = read_head(data + b"\r\n", at)  # a datagram that ends with its last header
        message.body = len(data)
    headers, first = message.headers, message.first
    for line in lines:
        length = len(line)
        known, before, value = _LINES.of(line)
        if known is not None:
            begin = at + before
            if known not in headers:
                first[known] = value
                headers[known] = [(begin, begin + len(value))]
            elif known in _ONCE and (known == "content-length" or value.rstrip(BLANKS) != first[known].rstrip(BLANKS)):
                raise Malformed(f"{known} twice", begin)
            else:
                headers[known].append((begin, begin + len(value)))
        at += length
    message.end = _end(message)
    _check(message)
    return message


def _read_line(line: bytes) -> tuple[str | None, int, bytes]:
    """Return the header of a line (None: one that does not matter), how much stands before its value, and the value."""
    label, colon, value = line.partition(b":")
    known = _KNOWN.get(label.rstrip(b" \t").lower()) if colon else None
    if known is None:
        return None, 0, b""
    rest = value.removesuffix(b"\n").removesuffix(b"\r")
    value = rest.lstrip(BLANKS)
    return known, len(label) + 1 + len(rest) - len(value), value


_LINES: Final = Remembered(_read_line)


def _start_line(message: Message) -> int:
    data = message.data
    begin = 0 if data[:1] not in (b"\r", b"\n") else len(data) - len(data.lstrip(b"\r\n"))
    end = data.find(b"\n", begin) + 1
    found = _START_LINES.of(data[begin:end])
    if found is None:
        raise Malformed("the start line")
    if found.is_wrong:
        raise Malformed("the Request-URI", begin + found.uri[0])
    if found.is_request:
        message.is_request = True
        message.method = found.method
        message.uri = (begin + found.uri[0], begin + found.uri[1])
    else:
        message.status = found.status
    return end


def _read_start_line(line: bytes) -> StartLine | None:
    if match := STATUS.fullmatch(line):
        return StartLine(int(match[1]), b"", (0, 0), is_wrong=False)
    match = REQUEST.fullmatch(line)
    if match is None:
        return None
    method = _METHODS.get(match[1].lower(), match[1])
    uri = read_uri(match[2])  # but for a registrar's, one that cannot be read decides nothing and stays
    is_wrong = uri.has_headers if uri is not None else method == b"REGISTER" and _is_sip(match[2])
    return StartLine(0, method, match.span(2), is_wrong)


_START_LINES: Final = Remembered(_read_start_line)


def _end(message: Message) -> int:
    value = message.first.get("content-length")
    if value is None:
        return len(message.data)
    at = message.headers["content-length"][0][0]
    end = message.body + content_length(value, at)
    if end > len(message.data):
        raise Malformed("content-length goes beyond the end", at)
    return end


def content_length(value: bytes, at: int = 0) -> int:
    """Read the value of Content-Length at `at`. Raises Malformed if it is not a number of at most nine digits."""
    digits = value.rstrip(BLANKS)
    if not digits.isdigit() or len(digits) > 9:
        raise Malformed("content-length", at)
    return int(digits)


def _read_sender(text: bytes) -> Via | None:
    """Read what stands before the parameters of Via; spans count from its beginning."""
    match = SENDER.fullmatch(text)
    place = _host_port(match, 2, 3) if match else None
    return Via(match[1].decode().upper(), place, (len(text), len(text))) if match and place else None


_SENDERS: Final = Remembered(_read_sender)


def _read_cseq(value: bytes) -> tuple[int, bytes] | None:
    match = CSEQ.fullmatch(value)
    return (int(match[1]), match[2]) if match else None


_SEQUENCES: Final = Remembered(_read_cseq)


def _read_addrs(value: bytes) -> tuple[Addr, ...]:
    """Read the addresses of a header's value. Spans count from its beginning."""
    return tuple([Addr(match.span(1), match.span(2)) for match in _addr_values(value)])


_ADDRS: Final = Remembered(_read_addrs)


def _read_party(value: bytes) -> Addr:
    """Read the address of From or To. Nothing is edited there, so that whatever else stands beside it does not matter.

    Raises Malformed if there is nothing at all.
    """
    try:
        found = _ADDRS.of(value)
    except Malformed:
        found = ()
    if len(found) != 1:
        found = _loose_addrs(value) or _bare_addr(value)
    return found[0]


_PARTIES: Final = Remembered(_read_party)


def _read_tag(value: bytes) -> bytes:
    found = find_param(value, _PARTIES.of(value).params, b"tag")
    return found[0] if found else b""


_TAGS: Final = Remembered(_read_tag)


def _loose_addrs(value: bytes) -> tuple[Addr, ...]:
    """Read the sip and sips URIs in <>, whatever stands around them. Nothing, if another could be meant: where brackets
    do not match, or such a URI stands without them, too."""
    if len(value) > _MOST_LOOSE:
        return ()
    found: list[Addr] = []
    around: list[bytes] = []
    at = 0
    for match in LOOSE_ADDR.finditer(value):
        around.append(value[at : match.start()])
        at = match.end()
        if match[2] is not None:
            return ()
        if match[1] is None:
            continue  # in quotes
        if found:
            found[-1] = Addr(found[-1].uri, (found[-1].params[0], match.start()))
        if _is_sip(match[1]):
            start = match.start(1)
            found.append(Addr((start, start + len(match[1].rstrip(BLANKS))), (match.end(), len(value))))
    around.append(value[at:])
    return () if BARE_URI.search(b" ".join(around)) else tuple(found)


def _named_uri(value: bytes) -> tuple[Addr, ...]:
    """Read the only URI of a value that has a name before it and no brackets."""
    if len(value) > _MOST_LOOSE:
        return ()
    found = list(BARE_URI.finditer(value))
    if len(found) != 1 or any(mark in value for mark in b'<>"?,'):
        return ()
    return (Addr(found[0].span(), (found[0].end(), len(value))),)


def _bare_addr(value: bytes) -> tuple[Addr, ...]:
    """Read the first URI in a value that has no brackets, or half of them, or quotes."""
    if match := BARE_URI.search(value):
        return (Addr(match.span(), (match.end(), len(value))),)
    if not value.strip(BLANKS):
        raise Malformed("no address")
    return (Addr((0, 0), (0, len(value))),)


def _check(message: Message) -> None:
    first, headers = message.first, message.headers
    for name in _NEEDED:
        if name not in first:
            raise Malformed(f"no {name}", message.body)
    message.call_id = first["call-id"].rstrip(BLANKS)
    cseq = _SEQUENCES.of(first["cseq"])
    if not message.call_id:
        raise Malformed("call-id", headers["call-id"][0][0])
    if cseq is None or cseq[0] > _MOST_SEQUENCE:
        raise Malformed("cseq", headers["cseq"][0][0])
    method = _METHODS.get(cseq[1].lower(), cseq[1])
    if message.is_request and message.method != method:
        raise Malformed("cseq names another method", headers["cseq"][0][0])
    message.cseq, message.method = cseq[0], method
    for name in ("from", "to"):
        try:
            _PARTIES.of(first[name])
        except Malformed:
            raise Malformed(name, headers[name][0][0]) from None


def _addr_values(data: bytes) -> list[re.Match[bytes]]:
    """Split the values of a header of addresses at commas. An address may stand without <>."""
    found: list[re.Match[bytes]] = []
    start, end = 0, len(data)
    while True:
        match = NAME_ADDR.match(data, start, end) or ADDR_SPEC.match(data, start, end)
        if match is None:
            raise Malformed("an address", start)
        found.append(match)
        if match.end() == end:
            return found
        comma = COMMA.match(data, match.end(), end)
        if comma is None:
            if not BLANK.fullmatch(data, match.end(), end):
                raise Malformed("an address", match.end())
            return found
        start = comma.end()


def _host_port(match: re.Match[bytes], host: int, port: int) -> HostPort | None:
    """Return host and port of a match; None for an impossible port. A colon without a port behind it belongs to it."""
    text = match[host].decode("latin-1").strip("[]")
    if not match[port]:
        return HostPort(text, None, match.start(host), max(match.end(host), match.end(port)))
    number = int(match[port])
    return HostPort(text, number, match.start(host), match.end(port)) if number <= 65535 else None

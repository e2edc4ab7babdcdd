"""Finds the session description in a message's body. `alg.text.sdp` reads it."""

from __future__ import annotations

import re

from alg.sip.grammar import CONTENT_TYPE
from alg.sip.message import Message
from alg.text.header import Malformed, Span, find_empty_line, find_param

_BODIES = (b"INVITE", b"UPDATE", b"PRACK", b"ACK")  # what may carry an offer or an answer (RFC 3261, 3262, 3311)
_PART_HEADER = re.compile(
    rb"(?im)^(content-type|content-length|content-transfer-encoding)[ \t]*+:(?:[ \t]|\r?\n[ \t])*+([^\r\n]*+)"
)
_UNCODED = (b"binary", b"8bit", b"7bit")


def find_sdp(message: Message) -> Span | None:
    """Return the span of the session description in a message that may have one (and is no MESSAGE or NOTIFY).

    Of a multipart body (RFC 5621) it is the only part of that type; if that part tells its own length, `message` notes
    where. Raises Malformed if there are several, or a part whose bounds are unclear.
    """
    kinds = message.headers.get("content-type")
    if message.method not in _BODIES or message.body >= message.end:
        return None
    if not kinds or not message.text(kinds[0]).strip():  # against RFC 3261, 20.15; its receivers read it all the same
        return (message.body, message.end) if message.data.startswith(b"v=0", message.body, message.end) else None
    start, end = kinds[0]
    match = CONTENT_TYPE.match(message.data, start, end)
    if match is None or any(not _same(message.text(other), message.text(kinds[0])) for other in kinds[1:]):
        raise Malformed("content-type", start)
    for encoding in message.headers.get("content-encoding", ()):
        if message.text(encoding).strip().lower() not in (b"", b"identity"):
            return None
    kind = match[1].lower()
    if kind == b"application" and match[2].lower() == b"sdp":
        return message.body, message.end
    if kind != b"multipart":
        return None
    boundary = find_param(message.data, (match.end(), end), b"boundary")
    if boundary is None or not boundary[0].strip(b'"'):
        raise Malformed("multipart without a boundary", start)
    found = [span for span in _parts(message, boundary[0].strip(b'"')) if span]
    if len(found) > 1:
        raise Malformed("several session descriptions", found[1][0])
    return found[0] if found else None


def _same(kind: bytes, other: bytes) -> bool:
    """Whether two values of Content-Type say the same, in any case where there is no boundary."""
    kind, other = kind.strip(), other.strip()
    return kind == other or (b"=" not in kind and kind.lower() == other.lower())


def _parts(message: Message, boundary: bytes) -> list[Span | None]:
    """Return the spans of the parts' bodies that are session descriptions; None for other parts (RFC 2046, 5.1.1)."""
    data, end = message.data, message.end
    delimiter = re.compile(rb"(?m:^)--" + re.escape(boundary) + rb"(--)?+[ \t]*+(?:\r?\n|\Z)")
    body = data[message.body : end]
    parts: list[Span | None] = []
    begins: int | None = None
    for match in delimiter.finditer(body):
        if begins is not None:
            parts.append(_part(message, message.body + begins, message.body + match.start()))
        if match[1]:
            return parts
        begins = match.end()
    if begins is None:
        raise Malformed("a multipart body without its boundary", message.body)
    parts.append(_part(message, message.body + begins, end, last=True))  # without its end: it goes to that of the body
    return parts


def _part(message: Message, start: int, end: int, last: bool = False) -> Span | None:
    """Return the description of the part in `message.data[start:end]`. The line end before the next delimiter does not
    belong to it."""
    data = message.data
    empty = find_empty_line(data[:end], start)
    if data.startswith((b"\r\n", b"\n"), start) or empty is None:
        return None  # without a head it is plain text
    is_sdp, length = False, None
    for match in _PART_HEADER.finditer(data, start, empty[0]):
        name, value = match[1].lower(), match[2].strip().lower()
        if name == b"content-type":
            is_sdp = value.split(b";")[0].strip() == b"application/sdp"
        elif name == b"content-length":
            if length is not None:
                return None
            length = match.span(2)
        elif value not in _UNCODED:
            return None  # hides what is there
    if not is_sdp:
        return None
    whole = end - empty[1]
    if not last:
        end = max(end - (2 if data.endswith(b"\r\n", empty[1], end) else 1), empty[1])
    if length is not None:
        digits = message.text(length).strip()
        if not digits.isdigit() or int(digits[:9]) not in (end - empty[1], whole):
            return None  # it ends elsewhere for whoever believes that
        message.part_length = length[0], length[0] + len(digits)
    return empty[1], end

"""SIP over a stream (RFC 3261, 18.3): where one message ends and the next begins."""

from __future__ import annotations

import re

from alg.sip.grammar import HEADER
from alg.sip.message import Malformed, content_length

MOST = 65536  # bytes of a message, head and body
MOST_LINE = 8192

_TOKEN = rb"[A-Za-z0-9!%'*+.\-_`~]++"
_START = re.compile(rb"SIP/[0-9]\.[0-9] [^\r\n]*|" + _TOKEN + rb" [^\r\n]*SIP/[0-9]\.[0-9][ \t]*")
_MAY_START = re.compile(rb"(?:S|SI|SIP|SIP/[^\r\n]*|" + _TOKEN + rb"(?: [^\r\n]*)?)\r?")
_BLANK_LINES = re.compile(rb"(?:\r\n)+")


def begins_as_sip(data: bytes) -> bool:
    """Whether the first line of `data` is a SIP start line, well-formed or not."""
    end = data.find(b"\r\n")
    return end >= 0 and _START.fullmatch(data, 0, end) is not None


def take(buffer: bytes) -> bytes | None:
    """The first message of `buffer`, or the blank lines before it (keep-alives); None: more bytes are needed.

    Malformed where it does not begin as SIP, or where its end cannot be told: nothing behind it can be read then.
    """
    if blank := _BLANK_LINES.match(buffer):
        return blank[0]
    line_end = buffer.find(b"\r\n")
    if line_end < 0:
        if len(buffer) > MOST_LINE or (buffer != b"\r" and not _MAY_START.fullmatch(buffer)):
            raise Malformed("not a start line")
        return None
    if not _START.fullmatch(buffer, 0, line_end):
        raise Malformed("not a start line")
    head_end = buffer.find(b"\r\n\r\n", line_end)
    if head_end < 0:
        if len(buffer) > MOST:
            raise Malformed("a message that is too long")
        return None
    end = head_end + 4 + content_length(_length(buffer, line_end + 2, head_end + 2))
    if end > MOST:
        raise Malformed("a message that is too long")
    return buffer[:end] if len(buffer) >= end else None


def _length(buffer: bytes, at: int, end: int) -> bytes:
    found: list[bytes] = []
    while match := HEADER.match(buffer, at, end):
        if match[1].lower() in (b"content-length", b"l"):
            found.append(match[2])
        at = match.end()
    if at != end or len(found) != 1:
        raise Malformed("no Content-Length that can be found")
    return found[0]

"""SIP over a stream (RFC 3261, 18.3): finds where one message ends and the next begins."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from alg.text.header import Malformed, Remembered
from alg.text.heads import HeadBuffer

MOST = 65536  # bytes of a message that is read, head and body; a longer one passes unread

_TOKEN = rb"[A-Za-z0-9!%'*+.\-_`~]++"
_START = re.compile(rb"(?i:SIP)/[0-9]\.[0-9] [^\r\n]*|" + _TOKEN + rb" [^\r\n]*(?i:SIP)/[0-9]\.[0-9][ \t]*")
_MAY_START = re.compile(rb"(?:(?i:S|SI|SIP|SIP/[^\r\n]*)|" + _TOKEN + rb"(?: [^\r\n]*)?)\r?")
_BETWEEN = re.compile(rb"[\r\n\0 \t]+")
_LENGTH = re.compile(rb"(?i)\n(?:content-length|l)[ \t]*+:(?:[ \t]|\r?\n[ \t])*+([^\r\n]*+)")
_TYPE = re.compile(rb"(?i)\n(?:content-type|c)[ \t]*+:")


class Part(Enum):
    """The kinds of bytes that `Framer.take` finds."""

    BETWEEN = "between"  # blank lines and zero bytes between messages: keep-alives
    MESSAGE = "message"
    UNREAD = "unread"  # a message that cannot be edited for its length, or a piece of it


class Cut(NamedTuple):
    """Bytes that belong together, from the beginning of what was left. `why`: the reason for UNREAD; b"" for its later
    pieces."""

    part: Part
    data: bytes
    why: str = ""


def begins_as_sip(data: bytes) -> bool:
    """Whether the first line of `data` that is not empty is a SIP start line, well-formed or not."""
    start = len(data) - len(data.lstrip(b"\r\n")) if data[:1] in (b"\r", b"\n") else 0
    end = data.find(b"\n", start)
    return end >= 0 and _START_LINES.of(data[start:end])


def _is_start_line(line: bytes) -> bool:
    return _START.fullmatch(line.removesuffix(b"\r")) is not None


_START_LINES: Final = Remembered(_is_start_line)


def hides_sip(data: bytes) -> bool:
    """Whether `data`, which does not begin as SIP, has a start line in it, behind more than blank lines."""
    return b"SIP/2.0" in data and not begins_as_sip(data)


class Framer:
    """One direction of a stream: `add` bytes, `take` what is whole."""

    def __init__(self) -> None:
        self._buffer = HeadBuffer(_START, _MAY_START)
        self._needed = 0  # bytes of the message, once its head is there
        self._passing = 0  # bytes of a message that is not read and has begun to pass

    def __len__(self) -> int:
        return len(self._buffer.data)

    def add(self, data: bytes) -> None:
        self._buffer.data += data

    def rest(self) -> bytes:
        """Return all that is left, and empty the buffer."""
        return self._buffer.rest()

    def take(self) -> Cut | None:
        """Return the next message, or what stands before it; None: more bytes are needed.

        Raises Malformed if the bytes do not begin as SIP, or a message's end cannot be determined; nothing behind it
        can be read then. A message without Content-Length is only its head: what follows has to begin as SIP.
        """
        if self._passing:
            return self._pass("")
        buffer = self._buffer
        if not buffer.data:
            return None
        if buffer.line_end < 0:
            if between := _BETWEEN.match(buffer.data):
                return Cut(Part.BETWEEN, self._cut(between.end()))
            if not buffer.find_start_line():
                return None
        why = ""
        if not self._needed:
            end = buffer.find_end()
            if end is None:
                return None
            length = _length(buffer.data, buffer.line_end, end)
            self._needed = end + (length or 0)
            if length is None and _TYPE.search(buffer.data, buffer.line_end, end):
                why = "no content-length beside a content-type"
        if self._needed > MOST:
            why = f"{self._needed} bytes are too long"
        if why:
            self._passing = self._needed
            return self._pass(why)
        if len(buffer.data) < self._needed:
            return None
        return Cut(Part.MESSAGE, self._cut(self._needed))

    def _pass(self, why: str) -> Cut | None:
        data = self._cut(min(self._passing, len(self._buffer.data)))
        self._passing -= len(data)
        return Cut(Part.UNREAD, data, why) if data else None

    def _cut(self, end: int) -> bytes:
        self._needed = 0
        return self._buffer.cut(end)


def _length(buffer: bytearray, at: int, end: int) -> int | None:
    """Read Content-Length in a head; None: there is none. Raises Malformed if it is no number, or there are several
    that differ."""
    found: int | None = None
    for match in _LENGTH.finditer(buffer, at, end):
        digits = match[1].rstrip(b" \t")
        if not digits.isdigit() or len(digits) > 9 or (found is not None and found != int(digits)):
            raise Malformed("content-length", match.start(1))
        found = int(digits)
    return found

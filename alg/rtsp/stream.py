"""RTSP over a stream (RFC 2326, 4 and 10.12; RFC 7826, 5 and 14): heads, bodies, and data frames between messages.

A head is held until its end is there. Bodies and frames are counted, not held: nothing in them is read.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from alg.text.header import TOKEN, Malformed
from alg.text.heads import MOST, HeadBuffer

_FRAME = 0x24  # "$"
_FRAME_HEAD = 4  # "$", a channel, a length of two bytes

_START = re.compile(
    rb"(?i:RTSP)/[0-9]\.[0-9][ \t]+[0-9]{3}(?:[ \t][^\r\n]*)?|"
    + TOKEN
    + rb"[ \t][^\r\n]*[ \t](?i:RTSP)/[0-9]\.[0-9][ \t]*"
)
_MAY_START = re.compile(rb"(?:(?i:RTSP)/[^\r\n]*|" + TOKEN + rb"(?:[ \t][^\r\n]*)?)\r?")
_BETWEEN = re.compile(rb"[\r\n\0 \t]+")
_LENGTH = re.compile(rb"(?i)\ncontent-length[ \t]*+:[ \t]*+([^\r\n]*+)")


class RtspPart(Enum):
    """The kinds of parts that `RtspFramer.take` finds."""

    PASSING = "passing"  # blank lines, bodies, data frames, or pieces of them
    HEAD = "head"  # a start line, header lines, and the empty line
    BODY = "body"  # a whole one, that was asked for


class Framed(NamedTuple):
    """Bytes that belong together, from the beginning of what was left."""

    part: RtspPart
    data: bytes


class RtspFramer:
    """One direction of a stream: `add` bytes, `take` what is whole."""

    def __init__(self) -> None:
        self._buffer = HeadBuffer(_START, _MAY_START)
        self._passing = 0  # bytes of a body or a frame that are still to come
        self._gathers = False  # the body that comes is held until it is whole

    def __len__(self) -> int:
        return len(self._buffer.data)

    def add(self, data: bytes) -> None:
        self._buffer.data += data

    def rest(self) -> bytes:
        """Take all bytes that are left."""
        return self._buffer.rest()

    def beginning(self) -> bytes:
        """Return the bytes that are left, without taking them."""
        return bytes(self._buffer.data)

    def take(self) -> Framed | None:
        """The next head, or bytes that stand before one; None: more bytes are needed.

        Malformed where what is there begins as no RTSP message, or where a message's end cannot be told.
        """
        buffer = self._buffer
        if not buffer.data:
            return None
        if self._passing:
            return self._pass()
        if buffer.line_end < 0:
            if buffer.data[0] == _FRAME:
                if len(buffer.data) < _FRAME_HEAD:
                    return None
                self._passing = _FRAME_HEAD + int.from_bytes(buffer.data[2:_FRAME_HEAD], "big")
                return self._pass()
            if between := _BETWEEN.match(buffer.data):
                return Framed(RtspPart.PASSING, buffer.cut(between.end()))
            if not buffer.find_start_line():
                return None
        end = buffer.find_end()
        if end is None:
            return None
        if end > MOST:
            raise Malformed("a head that is too long", MOST)
        self._passing = _length(buffer.data, buffer.line_end, end)
        return Framed(RtspPart.HEAD, buffer.cut(end))

    def gather(self, most: int) -> bool:
        """Join the head that was just taken with its body, so that both come as one part. Returns whether there is a
        body of at most `most` bytes; otherwise nothing changes."""
        self._gathers = 0 < self._passing <= most
        return self._gathers

    def _pass(self) -> Framed | None:
        there = len(self._buffer.data)
        if self._gathers:
            if there < self._passing:
                return None
            body = self._buffer.cut(self._passing)
            self._passing, self._gathers = 0, False
            return Framed(RtspPart.BODY, body)
        data = self._buffer.cut(min(self._passing, there))
        self._passing -= len(data)
        return Framed(RtspPart.PASSING, data)


def _length(buffer: bytearray, at: int, end: int) -> int:
    """Read Content-Length in a head; 0 if there is none. Raises Malformed if it is not a number, or if there are two
    that differ."""
    found: int | None = None
    for match in _LENGTH.finditer(buffer, at, end):
        digits = match[1].rstrip(b" \t")
        if not digits.isdigit() or len(digits) > 9 or found not in (None, int(digits)):
            raise Malformed("content-length", match.start(1))
        found = int(digits)
    return found or 0

"""RTSP over a stream (RFC 2326, 4 and 10.12; RFC 7826, 5 and 14): heads, bodies, and data frames between messages.

A head is held until its end is there. Bodies and frames are counted, not held: nothing in them is read. Each byte is
looked at a few times however the stream is cut.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from alg.text.header import TOKEN, Malformed, find_empty_line

MOST = 65536  # bytes of a head; a longer one is no RTSP
MOST_LINE = 8192  # of a start line
_BEGINNING = 128  # bytes by which a start line is told before its end is there
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


class Part(Enum):
    """What `Framer.take` has found."""

    PASSING = "passing"  # blank lines, bodies, data frames, or pieces of them
    HEAD = "head"  # a start line, header lines, and the empty line
    BODY = "body"  # a whole one, that was asked for


class Framed(NamedTuple):
    """Bytes that belong together, from the beginning of what was left."""

    part: Part
    data: bytes


class Framer:
    """One direction of a stream: `add` bytes, `take` what is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._line_end = -1  # of the start line that the buffer begins with, once it is there
        self._searched = 0  # bytes in which there is no end of the line or of the head
        self._passing = 0  # bytes of a body or a frame that are still to come
        self._tells = False  # the buffer's beginning has been found to be that of a start line
        self._gathers = False  # the body that comes is held until it is whole

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, data: bytes) -> None:
        self._buffer += data

    def rest(self) -> bytes:
        """All that is left; afterwards there is nothing."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def beginning(self) -> bytes:
        """What is left, to be looked at."""
        return bytes(self._buffer)

    def take(self) -> Framed | None:
        """The next head, or bytes that stand before one; None: more bytes are needed.

        Malformed where what is there begins as no RTSP message, or where a message's end cannot be told.
        """
        if not self._buffer:
            return None
        if self._passing:
            return self._pass()
        if self._line_end < 0:
            if self._buffer[0] == _FRAME:
                if len(self._buffer) < _FRAME_HEAD:
                    return None
                self._passing = _FRAME_HEAD + int.from_bytes(self._buffer[2:_FRAME_HEAD], "big")
                return self._pass()
            if between := _BETWEEN.match(self._buffer):
                return Framed(Part.PASSING, self._cut(between.end()))
            if not self._find_start_line():
                return None
        empty = find_empty_line(self._buffer, max(self._line_end, self._searched - 2))
        if empty is None or empty[1] > MOST:
            self._searched = len(self._buffer)
            if self._searched > MOST:
                raise Malformed("a head that is too long", MOST)
            return None
        self._passing = _length(self._buffer, self._line_end, empty[1])
        return Framed(Part.HEAD, self._cut(empty[1]))

    def gather(self, most: int) -> bool:
        """Have the body of the head that was just taken in one piece. Returns whether it has one, of at most so many
        bytes; otherwise nothing changes."""
        self._gathers = 0 < self._passing <= most
        return self._gathers

    def _find_start_line(self) -> bool:
        """Whether the start line is there. Malformed where it is none, or cannot become one."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            if not self._tells:
                if not _MAY_START.fullmatch(self._buffer, 0, _BEGINNING):
                    raise Malformed("not a start line")
                self._tells = len(self._buffer) >= _BEGINNING
            self._searched = len(self._buffer)
            if self._searched > MOST_LINE:
                raise Malformed("a start line that is too long", MOST_LINE)
            return False
        without = end - 1 if end and self._buffer[end - 1] == 0x0D else end
        if not _START.fullmatch(self._buffer, 0, without):
            raise Malformed("not a start line")
        self._line_end = self._searched = end
        return True

    def _pass(self) -> Framed | None:
        if self._gathers:
            if len(self._buffer) < self._passing:
                return None
            body = self._cut(self._passing)
            self._passing, self._gathers = 0, False
            return Framed(Part.BODY, body)
        data = self._cut(min(self._passing, len(self._buffer)))
        self._passing -= len(data)
        return Framed(Part.PASSING, data)

    def _cut(self, end: int) -> bytes:
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._line_end, self._searched, self._tells = -1, 0, False
        return data


def _length(buffer: bytearray, at: int, end: int) -> int:
    """What Content-Length says in a head; without one 0. Malformed for no number, and for two different ones."""
    found: int | None = None
    for match in _LENGTH.finditer(buffer, at, end):
        digits = match[1].rstrip(b" \t")
        if not digits.isdigit() or len(digits) > 9 or found not in (None, int(digits)):
            raise Malformed("content-length", match.start(1))
        found = int(digits)
    return found or 0

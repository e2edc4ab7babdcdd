"""Heads in a stream, as SIP and RTSP have them: a start line, header lines, an empty line.

Each byte is examined a few times however the stream is cut: what was searched is not searched again.
"""

from __future__ import annotations

from typing import Any

from alg.text.header import Malformed, find_empty_line

MOST = 65536  # bytes of a head
MOST_LINE = 8192  # of a start line
_BEGINNING = 128  # bytes by which a start line is told before its end is there


class HeadBuffer:
    """The bytes of one direction that were not taken yet.

    `start`: the pattern of a whole start line, without its end; `may_start`: that of its beginning. `line_end`: where
    the start line that the buffer begins with ends; -1: it was not found yet.
    """

    def __init__(self, start: Any, may_start: Any) -> None:
        self.data = bytearray()
        self.line_end = -1
        self._start = start
        self._may_start = may_start
        self._searched = 0  # bytes in which there is no end of the line or of the head
        self._tells = False  # the buffer's beginning has been found to be that of a start line

    def cut(self, end: int) -> bytes:
        """Take the first `end` bytes away, and return them."""
        data = bytes(self.data[:end])
        del self.data[:end]
        self.line_end, self._searched, self._tells = -1, 0, False
        return data

    def rest(self) -> bytes:
        """Return all that is left, and empty the buffer."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def find_start_line(self) -> bool:
        """Whether the start line is complete; `line_end` is set then. Raises Malformed if the bytes are not a start
        line, or cannot become one."""
        end = self.data.find(b"\n", self._searched)
        if end < 0:
            if not self._tells:
                if not self._may_start.fullmatch(self.data, 0, _BEGINNING):
                    raise Malformed("not a start line")
                self._tells = len(self.data) >= _BEGINNING
            self._searched = len(self.data)
            if self._searched > MOST_LINE:
                raise Malformed("a start line that is too long", MOST_LINE)
            return False
        without = end - 1 if end and self.data[end - 1] == 0x0D else end
        if not self._start.fullmatch(self.data, 0, without):
            raise Malformed("not a start line")
        self.line_end = self._searched = end
        return True

    def find_end(self) -> int | None:
        """Return where the head ends, behind its empty line; None: it is not there yet. Raises Malformed where it would
        be too long."""
        empty = find_empty_line(self.data, max(self.line_end, self._searched - 2))
        if empty is not None:
            return empty[1]
        self._searched = len(self.data)
        if self._searched > MOST:
            raise Malformed("a head that is too long", MOST)
        return None

"""A bounded line buffer: bytes go in, whole lines come out, not one byte changed, at a cost that is linear in bytes."""

from __future__ import annotations

from typing import NamedTuple

BOUND = 4096


class Lines(NamedTuple):
    """Bytes of a stream. `whole`: they are one or more lines, each with its LF and none too long. Otherwise they are a
    piece of a line that is too long, or came too slowly, and must be relayed unread."""

    data: bytes
    whole: bool = True


class LineBuffer:
    """Cuts a stream into lines that end in LF (a CR before it is kept).

    A line longer than `bound` bytes, LF included, comes out in pieces that are not `whole`, its end included, so that
    no part of it is mistaken for a line. The buffer never holds more than `bound` bytes.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._partial = bytearray()
        self._unread = False

    def __len__(self) -> int:
        """The number of bytes of the unfinished line."""
        return len(self._partial)

    def beginning(self, most: int) -> bytes:
        """Return the first bytes of the unfinished line, at most `most` of them."""
        return bytes(self._partial[:most])

    def feed(self, data: bytes) -> list[Lines]:
        """Add bytes, and return the lines and pieces that are complete now, in order."""
        found: list[Lines] = []
        if self._unread:
            end = data.find(b"\n") + 1
            if not end:
                return [Lines(data, whole=False)] if data else []
            found.append(Lines(data[:end], whole=False))
            data = data[end:]
            self._unread = False
        end = data.rfind(b"\n") + 1
        if end:
            self._sort(bytes(self._partial) + data[:end] if self._partial else data[:end], found)
            self._partial.clear()
            data = data[end:]
        if len(self._partial) + len(data) > self._bound:
            found.append(Lines(bytes(self._partial) + data, whole=False))
            self._partial.clear()
            self._unread = True
        else:
            self._partial += data
        return found

    def release(self) -> bytes:
        """Return the unfinished line now. What follows, up to its LF, will be pieces that are not `whole`."""
        data = bytes(self._partial)
        self._unread = self._unread or bool(data)
        self._partial.clear()
        return data

    def _sort(self, lines: bytes, found: list[Lines]) -> None:
        """Separate lines that are too long from the others. Each step advances by up to the bound, so the cost is
        linear."""
        begun = at = 0
        while len(lines) - at > self._bound:
            end = lines.rfind(b"\n", at, at + self._bound) + 1
            if end:
                at = end
                continue
            if at > begun:
                found.append(Lines(lines[begun:at]))
            begun = lines.index(b"\n", at) + 1
            found.append(Lines(lines[at:begun], whole=False))
            at = begun
        if begun < len(lines):
            found.append(Lines(lines[begun:]))

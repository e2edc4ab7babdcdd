"""A bounded line buffer: bytes in, whole lines out, not one byte changed, at a cost that is linear in bytes."""

from __future__ import annotations

from typing import NamedTuple

BOUND = 4096


class Lines(NamedTuple):
    """Bytes of a stream. `whole`: one or more lines, each with its LF and none too long. Else a piece of a line that is
    too long, or came too slowly, and must be relayed unread."""

    data: bytes
    whole: bool = True


class LineBuffer:
    """Cuts a stream where lines end in LF (a CR before it is kept).

    A line longer than `bound` bytes, LF included, comes out in pieces that are not `whole`, its end too: whatever such
    a line says, it is never mistaken for a line of its own. Never holds more than `bound` bytes.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._partial = bytearray()
        self._unread = False

    def __len__(self) -> int:
        """Bytes of the unfinished line that is held."""
        return len(self._partial)

    def beginning(self, most: int) -> bytes:
        """The first bytes, at most so many, of the unfinished line that is held."""
        return bytes(self._partial[:most])

    def feed(self, data: bytes) -> list[Lines]:
        """Take bytes; return the lines and pieces that they finish, in order."""
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
        """Hand out the unfinished line now; what follows, up to its LF, will be pieces that are not `whole`."""
        data = bytes(self._partial)
        self._unread = self._unread or bool(data)
        self._partial.clear()
        return data

    def _sort(self, lines: bytes, found: list[Lines]) -> None:
        """Tell the lines that are too long from the others. A step goes as far as the bound, so it is linear."""
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

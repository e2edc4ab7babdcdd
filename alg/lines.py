"""A bounded line buffer: bytes in, lines out, not one byte changed."""

from __future__ import annotations

from dataclasses import dataclass

BOUND = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes of a stream. `whole`: one line with its LF. Else a piece of a line that must be relayed unread."""

    data: bytes
    whole: bool = True


class LineBuffer:
    """Cuts a stream into lines that end in LF (a CR before it is kept).

    A line longer than `bound` bytes, LF included, comes out in pieces that are not `whole`, its end too: whatever such
    a line says, it is never mistaken for a line of its own. Never holds more than `bound` bytes; O(n) in all.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._partial = bytearray()
        self._unread = False

    @property
    def partial(self) -> bytes:
        """The unfinished line that is held."""
        return bytes(self._partial)

    def feed(self, data: bytes) -> list[Line]:
        """Take bytes; return the lines and pieces that they finish."""
        lines: list[Line] = []
        at = 0
        while end := data.find(b"\n", at) + 1:
            chunk = data[at:end]
            whole = not self._unread and len(self._partial) + len(chunk) <= self._bound
            lines.append(Line(bytes(self._partial) + chunk, whole))
            self._partial.clear()
            self._unread = False
            at = end
        rest = data[at:]
        if rest and (self._unread or len(self._partial) + len(rest) > self._bound):
            lines.append(Line(bytes(self._partial) + rest, whole=False))
            self._partial.clear()
            self._unread = True
        else:
            self._partial += rest
        return lines

    def release(self) -> bytes:
        """Hand out the unfinished line now; what follows, up to its LF, will be pieces that are not `whole`."""
        data = bytes(self._partial)
        self._unread = self._unread or bool(data)
        self._partial.clear()
        return data

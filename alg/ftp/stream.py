"""One direction of an FTP control connection: what came and is not delivered yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from alg.api import Command, Deliver
from alg.ftp.convert import Meeting, Translated
from alg.ftp.endpoints import Advert, Passive
from alg.lines import Line, LineBuffer


@dataclass(frozen=True, slots=True)
class Wait:
    """A line that is held until its pinhole `ref` is open, or until `deadline`. `advert`: what to rewrite then."""

    ref: int
    line: bytes
    deadline: float
    advert: Advert | Passive | Meeting | Translated


@dataclass(slots=True)
class Stream:
    """A queue of lines. While `wait` is set, nothing behind that line moves."""

    buffer: LineBuffer = field(default_factory=LineBuffer)
    lines: deque[Line] = field(default_factory=deque)
    held: int = 0  # bytes in `lines`
    wait: Wait | None = None
    spoke: bool = False  # a first line was found good
    closed: bool = False  # the side sends no more
    ended: bool = False  # and the other one was told
    stalls_at: float = 0.0  # when an unfinished line is given up, if there is one

    def push(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.lines.append(line)
            self.held += len(line.data)

    def pop(self) -> Line:
        line = self.lines.popleft()
        self.held -= len(line.data)
        return line


def joined(commands: Sequence[Command]) -> list[Command]:
    """Join neighbouring deliveries that carry no edits: one send instead of one a line."""
    result: list[Command] = []
    for to, run in groupby(commands, lambda c: c.to if isinstance(c, Deliver) and not c.edits else None):
        if to is None:
            result += run
        else:
            result.append(Deliver(to, b"".join(c.data for c in run if isinstance(c, Deliver))))
    return result

"""One direction of an FTP control connection: its state, and what has come and is not delivered yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from alg.api import Command, Deliver
from alg.ftp.state import Control
from alg.ftp.strategy import AskFirst
from alg.lines import LineBuffer, Lines


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A line that is held back until its question is answered, or until `deadline`."""

    ask: AskFirst
    line: bytes
    deadline: float

    @property
    def ref(self) -> int:
        return self.ask.question.ref


@dataclass(slots=True)
class LineQueue:
    """A queue of lines. While one of them is held, nothing behind it moves."""

    state: Control = Control.GREETING
    buffer: LineBuffer = field(default_factory=LineBuffer)
    queue: deque[Lines] = field(default_factory=deque)
    at: int = 0  # how much of the first in the queue has been done
    queued: int = 0  # bytes in the queue
    hold: HeldLine | None = None
    spoke: bool = False  # a first line was found good
    before: int = 0  # lines of a server before its greeting
    closed: bool = False  # the side sends no more
    ended: bool = False  # and the other one was told
    stalls_at: float = 0.0  # when an unfinished line is given up, if there is one

    def push(self, lines: Iterable[Lines]) -> None:
        for item in lines:
            self.queue.append(item)
            self.queued += len(item.data)

    @property
    def waiting(self) -> int:
        """The number of bytes behind a line that is held."""
        return self.queued - self.at

    def drop_done(self) -> None:
        """Remove the first entry of the queue if all of it was handled."""
        if self.queue and self.at >= len(self.queue[0].data):
            self.queued -= len(self.queue.popleft().data)
            self.at = 0

    def take_all(self) -> bytes:
        """Return all that was not handled, the unfinished line included."""
        data = b"".join(item.data for item in self.queue)[self.at :] + self.buffer.release()
        self.queue.clear()
        self.queued = self.at = 0
        return data


def joined(commands: Sequence[Command]) -> list[Command]:
    """Join neighbouring deliveries without edits, so that they are sent with one call instead of one for each line."""
    result: list[Command] = []
    for to, run in groupby(commands, lambda c: c.to if isinstance(c, Deliver) and not c.edits else None):
        if to is None:
            result += run
            continue
        deliveries = [c for c in run if isinstance(c, Deliver)]
        result.append(deliveries[0] if len(deliveries) == 1 else Deliver(to, b"".join(c.data for c in deliveries)))
    return result

"""What became of each message that a module read: a ring of the last ones in a process, and their form for people."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from alg.address import Endpoint
from alg.api import Edit, Rung, Side, apply_edits
from gateway.observe.ladders import Ladders

KEPT = 256

Row = dict[str, Any]
_Kept = tuple[int, float, Side, Endpoint, Endpoint, bytes, tuple[Edit, ...], str]


class Trace:
    """The last messages of a process, each with a number, so that whoever asks again knows what is new.

    `ladders` keeps those of calls for longer.
    """

    def __init__(self, size: int = KEPT) -> None:
        self.ladders = Ladders()
        self._numbers = itertools.count(1)
        self._ring: deque[_Kept] = deque(maxlen=size)

    def add(
        self,
        side: Side,
        source: Endpoint,
        destination: Endpoint,
        data: bytes,
        edits: Sequence[Edit],
        flow: str = "",
        rung: Rung | None = None,
    ) -> None:
        """Remember a message that `side` sent, and what is changed in it; `rung`: where it belongs in a ladder."""
        now = time.time()
        self._ring.append((next(self._numbers), now, side, source, destination, data, tuple(edits), flow))
        if rung is not None:
            self.ladders.add(now, side, source, destination, data, edits, rung)

    def rows(self) -> list[Row]:
        """As `algate trace --json` shows them; bytes as Latin-1 text."""
        return [
            {"number": number, **row(when, side, source, destination, data, edits), "flow": flow}
            for number, when, side, source, destination, data, edits, flow in self._ring
        ]


PASSED = Trace()
"""Of the flows of this process; those of a module that says that they may be `shown`."""


def row(when: float, side: Side, source: Endpoint, destination: Endpoint, data: bytes, edits: Sequence[Edit]) -> Row:
    """One message as an object; `when` is Unix time, `edits` are (start, end, replacement, reason) of `data`."""
    return {
        "time": when,
        "from": side.value,
        "source": str(source),
        "destination": str(destination),
        "data": data.decode("latin-1"),
        "after": apply_edits(data, edits).decode("latin-1") if edits else None,
        "edits": [
            {
                "start": edit.start,
                "end": edit.end,
                "before": data[edit.start : edit.end].decode("latin-1"),
                "after": edit.replacement.decode("latin-1"),
                "reason": edit.reason,
            }
            for edit in edits
        ],
    }


def render(row: Row) -> Iterator[Text]:
    """The lines of a message for a terminal: unchanged ones as they are, changed ones as - and + with the reasons."""
    head = f"{_clock(row['time'])} {row['source']} -> {row['destination']}"
    count = len(row["edits"])
    yield Text.assemble((head, "bold"), (f"  {count} edit{'s' * (count != 1)}" if count else "  untouched", "dim"))
    data, edits = row["data"], row["edits"]
    at = 0
    for line in data.splitlines(keepends=True):
        end = at + len(line)
        mine = [edit for edit in edits if at <= edit["start"] < end]
        if not mine:
            yield Text("    " + _shown(line))
        else:
            yield _line("  - ", line, at, mine, "before", "red")
            yield _line("  + ", line, at, mine, "after", "green")
            yield Text("      " + ", ".join(dict.fromkeys(edit["reason"] for edit in mine)), style="dim")
        at = end
    yield Text("")


def _line(mark: str, line: str, at: int, edits: Sequence[Row], which: str, colour: str) -> Text:
    text = Text(mark, style=colour)
    done = 0
    for edit in edits:
        start, end = edit["start"] - at, min(edit["end"] - at, len(line))
        text.append(_shown(line[done:start]), style=colour)
        text.append(_shown(edit[which]), style=f"bold {colour}")
        done = end
    text.append(_shown(line[done:]), style=colour)
    return text


def _shown(text: str) -> str:
    """Without line ends, and without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text.rstrip("\r\n"))


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1000):03}"

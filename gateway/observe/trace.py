"""The trace: a ring of the most recent messages that modules of this process have read, with their edits."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from alg.address import Endpoint
from alg.api import Edit, Rung, Side, apply_edits
from gateway.model.requests import Transport
from gateway.observe.ladders import Ladders

KEPT = 256

Row = dict[str, Any]
_Kept = tuple[int, float, Side, Endpoint, Endpoint, bytes, tuple[Edit, ...], str, str | None, Transport]


class Trace:
    """The most recent messages of a process. Each has a number, so that a reader that asks again knows which are new.

    `ladders` keeps the messages of calls for longer.
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
        *,
        transport: Transport,
    ) -> None:
        """Add a message that `side` sent, with its edits. `rung`: its place in a ladder."""
        now = time.time()
        ladder = rung.ladder.decode("latin-1") if rung is not None else None
        kept = (side, source, destination, data, tuple(edits), flow, ladder, transport)
        self._ring.append((next(self._numbers), now, *kept))
        if rung is not None:
            self.ladders.add(now, side, source, destination, data, edits, rung)

    def rows(self) -> list[Row]:
        """Return the messages as `algate trace --json` shows them, bytes as Latin-1 text. `ladder`: the id of what they
        belong to, such as a call."""
        return [
            {
                "number": number,
                **row(when, side, source, destination, data, edits),
                "transport": transport,
                "flow": flow,
                "ladder": ladder,
            }
            for number, when, side, source, destination, data, edits, flow, ladder, transport in self._ring
        ]


PASSED = Trace()
"""The trace of the flows of this process. It has only messages of modules that declare `shown`."""


def row(when: float, side: Side, source: Endpoint, destination: Endpoint, data: bytes, edits: Sequence[Edit]) -> Row:
    """Return one message as an object. `when` is Unix time; `edits` are (start, end, replacement, reason) of `data`."""
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

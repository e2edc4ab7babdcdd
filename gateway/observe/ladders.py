"""Keeps the messages of recent ladders, such as the messages of a call.

They are kept apart from the trace, from which registrations and keep-alives would soon push out a call. The protocol
module says which messages belong together, and what of them may be shown (`alg.api.Rung`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from alg.address import Endpoint
from alg.api import Edit, Rung, Side

MOST_CALLS = 256
MOST_MESSAGES = 40  # of a call
MOST_BYTES = 8 * 1024 * 1024


class _Step(NamedTuple):
    time: float
    side: Side
    source: Endpoint
    destination: Endpoint
    data: bytes
    edits: tuple[Edit, ...]
    rung: Rung


class Ladders:
    """Recent messages by the name of their ladder. Adding one must be cheap, because each packet does it."""

    def __init__(self) -> None:
        self._calls: OrderedDict[bytes, deque[_Step]] = OrderedDict()
        self._bytes = 0

    def add(
        self,
        when: float,
        side: Side,
        source: Endpoint,
        destination: Endpoint,
        data: bytes,
        edits: Sequence[Edit],
        rung: Rung,
    ) -> None:
        """Keep a message, if its ladder has begun. `when` is Unix time."""
        name = rung.ladder
        steps = self._calls.get(name)
        if steps is None:
            if not rung.first:
                return
            steps = self._calls[name] = deque()
        self._calls.move_to_end(name)
        steps.append(_Step(when, side, source, destination, data, tuple(edits), rung))
        self._bytes += len(data)
        if len(steps) > MOST_MESSAGES:
            self._bytes -= len(steps.popleft().data)
        while len(self._calls) > MOST_CALLS or self._bytes > MOST_BYTES:
            _, forgotten = self._calls.popitem(last=False)
            self._bytes -= sum(len(step.data) for step in forgotten)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the messages of a ladder, oldest first."""
        return [
            {
                "time": step.time,
                "from": step.side.value,
                "source": str(step.source),
                "destination": str(step.destination),
                **step.rung.row(step.data, step.edits),
            }
            for step in self._calls.get(name.encode(), ())
        ]

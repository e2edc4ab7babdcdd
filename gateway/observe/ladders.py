"""The messages of each SIP call, for its ladder: the last ones of the last calls, told without bodies and secrets.

Kept apart from the trace, which registrations and keep-alives would soon have pushed a call out of.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from alg.address import Endpoint
from alg.api import Edit, Side

MOST_CALLS = 256
MOST_MESSAGES = 40  # of a call
MOST_BYTES = 8 * 1024 * 1024
LONGEST = 200  # characters of a line

_call_id = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search
_cseq = re.compile(rb"\ncseq[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search


class _Step(NamedTuple):
    time: float
    side: Side
    source: Endpoint
    destination: Endpoint
    data: bytes
    edits: tuple[Edit, ...]


class Ladders:
    """What was said in calls, by Call-ID; a call begins with its INVITE. In the way of a packet: it is only kept."""

    def __init__(self) -> None:
        self._calls: OrderedDict[bytes, deque[_Step]] = OrderedDict()
        self._bytes = 0

    def add(
        self, when: float, side: Side, source: Endpoint, destination: Endpoint, data: bytes, edits: Sequence[Edit]
    ) -> None:
        """Remember a message, if it belongs to a call. `when` is Unix time."""
        found = _call_id(data)
        if found is None:
            return
        steps = self._calls.get(found[1])
        if steps is None:
            if not data.startswith(b"INVITE "):
                return
            steps = self._calls[found[1]] = deque()
        self._calls.move_to_end(found[1])
        steps.append(_Step(when, side, source, destination, data, tuple(edits)))
        self._bytes += len(data)
        if len(steps) > MOST_MESSAGES:
            self._bytes -= len(steps.popleft().data)
        while len(self._calls) > MOST_CALLS or self._bytes > MOST_BYTES:
            _, forgotten = self._calls.popitem(last=False)
            self._bytes -= sum(len(step.data) for step in forgotten)

    def rows(self, call_id: str) -> list[dict[str, Any]]:
        """The steps of a call, oldest first. `head`, `before` or `after`, `tail`: the line around an edit."""
        return [
            {
                "time": step.time,
                "from": step.side.value,
                "source": str(step.source),
                "destination": str(step.destination),
                "title": _text(step.data.partition(b"\r\n")[0]),
                "cseq": _text(cseq[1]) if (cseq := _cseq(step.data)) else "",
                "edits": [_change(step.data, edit) for edit in step.edits],
            }
            for step in self._calls.get(call_id.encode(), ())
        ]


def _change(data: bytes, edit: Edit) -> dict[str, str]:
    """An edit with the rest of its line, as far as that is one line and no secret."""
    start = data.rfind(b"\n", 0, edit.start) + 1
    end = data.find(b"\r", edit.end)
    end = end if end >= 0 else len(data)
    line = data[start:end]
    if b"\n" in line or line[:13].lower() in (b"authorization", b"proxy-authori"):
        start, end = edit.start, edit.end
    return {
        "reason": edit.reason,
        "head": _text(data[start : edit.start]),
        "before": _text(data[edit.start : edit.end]),
        "after": _text(edit.replacement),
        "tail": _text(data[edit.end : end]),
    }


def _text(data: bytes) -> str:
    text = data[: LONGEST + 1].decode("utf-8", "replace")
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return shown if len(text) <= LONGEST else shown[:LONGEST] + "…"

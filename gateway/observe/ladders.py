"""The messages of each SIP call, for its ladder: the last ones of the last calls, without bodies and secrets.

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
LONGEST = 200  # characters of a line

_call_id = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search
_cseq = re.compile(rb"\ncseq[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search


class _Step(NamedTuple):
    time: float
    side: Side
    source: Endpoint
    destination: Endpoint
    title: str
    cseq: str
    edits: tuple[dict[str, str], ...]


class Ladders:
    """What was said in calls, by Call-ID; a call begins with its INVITE."""

    def __init__(self) -> None:
        self._calls: OrderedDict[bytes, deque[_Step]] = OrderedDict()

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
            while len(self._calls) >= MOST_CALLS:
                self._calls.popitem(last=False)
            steps = self._calls[found[1]] = deque(maxlen=MOST_MESSAGES)
        self._calls.move_to_end(found[1])
        cseq = _cseq(data)
        steps.append(
            _Step(
                when,
                side,
                source,
                destination,
                _text(data.partition(b"\r\n")[0]),
                _text(cseq[1]) if cseq else "",
                tuple(_change(data, edit) for edit in edits),
            )
        )

    def rows(self, call_id: str) -> list[dict[str, Any]]:
        """The steps of a call, oldest first. `before` and `after` are the line around an edit."""
        return [
            {
                "time": step.time,
                "from": step.side.value,
                "source": str(step.source),
                "destination": str(step.destination),
                "title": step.title,
                "cseq": step.cseq,
                "edits": step.edits,
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

"""The ladder of a call: which call a message belongs to, and what is shown of it, without body and secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from alg.api import Edit
from alg.sip.message import Message

LONGEST = 200  # characters of a line
_SECRET = (b"authorization", b"proxy-authori")

_call_id = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search
_cseq = re.compile(rb"\ncseq[ \t]*:[ \t]*([^\r\n]+)", re.IGNORECASE).search


class SipRung(NamedTuple):
    """See `alg.api.Rung`. The ladder is named by the Call-ID, and begins with an INVITE."""

    ladder: bytes
    first: bool

    def row(self, data: bytes, edits: Sequence[Edit]) -> dict[str, Any]:
        """Return first line, CSeq and edits. `head`, `before` or `after`, `tail`: the line around an edit."""
        return {
            "title": _text(data.partition(b"\r\n")[0]),
            "cseq": _text(cseq[1]) if (cseq := _cseq(data)) else "",
            "edits": [_change(data, edit) for edit in edits],
        }


def rung_of(message: Message) -> SipRung:
    """Return the rung of a message that was read."""
    return SipRung(message.call_id, message.is_request and message.method == b"INVITE")


def unread_rung(data: bytes) -> SipRung | None:
    """Return the rung of a message that was not read; None if it names no call."""
    found = _call_id(data)
    return SipRung(found[1], data.startswith(b"INVITE ")) if found else None


def _change(data: bytes, edit: Edit) -> dict[str, str]:
    """Return an edit with the rest of its line, if that is one line and no secret."""
    start = data.rfind(b"\n", 0, edit.start) + 1
    end = data.find(b"\r", edit.end)
    end = end if end >= 0 else len(data)
    line = data[start:end]
    if b"\n" in line or line[:13].lower() in _SECRET:
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

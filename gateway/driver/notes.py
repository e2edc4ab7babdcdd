"""What modules report: counted always, logged once."""

from __future__ import annotations

from alg.api import Note
from gateway.observe.counters import count


def is_to_log(note: Note) -> bool:
    """Count a note of a module. Returns whether it is to be logged: that was not done a moment ago."""
    count("algate_notes_total", note.code)
    if note.unread:
        count("algate_messages_unread_total")
    return not note.again

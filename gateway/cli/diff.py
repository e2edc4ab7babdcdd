"""Messages and their edits as a diff: unchanged lines as they are, changed ones with - and + and the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.text import Text

from gateway.observe.trace import Row


def render(row: Row) -> Iterator[Text]:
    """Render a message of a trace for a terminal: unchanged lines as they are, changed ones with - and + and the
    reasons."""
    head = f"{clock(row['time'])} {row['source']} -> {row['destination']}"
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
    """Remove line ends, and replace characters that a terminal would interpret."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text.rstrip("\r\n"))


def clock(when: float) -> str:
    """Format a Unix time as local date and time of day, with milliseconds and the offset from UTC (ISO 8601)."""
    return datetime.fromtimestamp(when).astimezone().isoformat(sep=" ", timespec="milliseconds")

"""How commands print: one JSON array with --json, otherwise tables, with colour on a terminal.

NO_COLOR and TERM=dumb turn the colour off (rich does that). A pipe gets plain lines that are not shortened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gateway.observe.logfmt import moment

if TYPE_CHECKING:  # it takes longer to load than all else; rows as JSON do not need it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_MOMENTS = ("expires", "since", "time")  # keys of rows
PIPE_WIDTH = 400  # characters of a line in a pipe at least, so that none is folded
BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {
    "running": "green",
    "ready": "green",
    "ok": "green",
    "permit": "green",
    "warning": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "failed": "bold red",
    "deny": "red",
}


def console() -> Console:
    """A console on standard output."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = max(out.width, PIPE_WIDTH)
    return out


def show_rows(
    rows: Sequence[dict[str, Any]],
    as_json: bool,
    columns: Sequence[str],
    **derived: Callable[[dict[str, Any]], str],
) -> None:
    """Print rows as one JSON array, or as a table with the named columns. `derived` computes columns that the rows do
    not have."""
    if as_json:
        show_json(rows)
    else:
        console().print(table_of(rows, columns, **derived))


def show_json(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as one JSON array of objects. Moments are printed as the log has them, in UTC (RFC 3339); processes
    tell each other Unix time."""
    click.echo(json.dumps([_with_moments(row) for row in rows], indent=2))


def _with_moments(row: dict[str, Any]) -> dict[str, Any]:
    return {key: moment(value) if key in _MOMENTS and isinstance(value, float) else value for key, value in row.items()}


def table_of(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], **derived: Callable[[dict[str, Any]], str]
) -> Table:
    """Return a table with the named columns of rows. A value that a row does not have is shown as "-"."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        cells = (derived[column](row) if column in derived else row.get(column) for column in columns)
        table.add_row(*("-" if cell is None else styled(cell) for cell in cells))
    return table


def styled(value: object) -> Text:
    """Return a word in the colour of its meaning, if it has one."""
    from rich.text import Text

    text = str(value)
    return Text(text, style=_STYLES.get(text, ""))


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the last `width` values as blocks, scaled to the highest one. The result has `width` characters, blank where
    there is no value."""
    shown = list(values)[-width:]
    highest = max(shown, default=0.0)
    scale = (len(BLOCKS) - 1) / highest if highest > 0 else 0.0
    return "".join(BLOCKS[round(value * scale)] for value in shown).rjust(width)

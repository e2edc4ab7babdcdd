"""The results: a table on the terminal, docs/benchmarks.md, and a plot."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

Table = dict[str, dict[str, float]]


def show(table: Table) -> None:
    """Print the table."""
    columns = list(dict.fromkeys(key for row in table.values() for key in row))
    shown = RichTable("peer", *columns)
    for name, row in table.items():
        shown.add_row(
            name,
            *(
                f"{row[key]:.3g}" if key in row and row[key] < 100 else f"{row[key]:.0f}" if key in row else "-"
                for key in columns
            ),
        )
    Console(width=200).print(shown)

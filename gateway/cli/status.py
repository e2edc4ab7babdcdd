"""`algate status`: a table of the processes and, on a terminal, a drawing of their throughput."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.live import collect
from gateway.cli.options import config_option, json_option
from gateway.cli.output import console, show_json, sparkline, table_of
from gateway.observe.admin import Rows

if TYPE_CHECKING:  # only what is drawn needs it
    from rich.console import Console, RenderableType

COLUMNS = ("process", "pid", "state", "flows", "finished", "up", "down")
WIDTH = 60  # samples that are drawn
SAMPLES, PERIOD = 8, 0.25  # of plain `status`, seconds between two
WATCH_PERIOD = 1.0  # seconds


@click.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Go on, with one sample each second, until interrupted.")
def status(config_path: str | None, as_json: bool, watch: bool) -> None:
    """Show the processes, their flows and bytes.

    Counts are since a process started. On a terminal two seconds of throughput and connections are drawn below the
    table; with --watch the drawing goes on. In a pipe --watch prints one line each second.

    \b
    Examples:
      algate status
      algate status --watch
      algate status --json
    """
    if as_json and watch:
        raise click.UsageError("--watch is for people, --json prints one array: choose one")
    rows = collect(config_path, "status")
    if as_json:
        show_json(rows)
        return
    out = console()
    if not out.is_terminal and not watch:
        out.print(table_of(rows, COLUMNS))
        _print_rules(rows)
    elif not out.is_terminal:
        with suppress(KeyboardInterrupt):
            _print_samples(rows, config_path)
    else:
        with suppress(KeyboardInterrupt):
            _draw(out, rows, config_path, watch)
        _print_rules(rows)


def _print_rules(rows: Rows) -> None:
    """Print whether the iptables rules are applied, if this configuration has any."""
    for row in rows:
        if row.get("rules"):
            click.echo(f"iptables rules: {row['rules']}")


def _print_samples(rows: Rows, config_path: str | None) -> None:
    samples = Samples(rows)
    for rows in _polls(config_path, WATCH_PERIOD):
        samples.add(rows)
        click.echo(samples.line())


def _draw(out: Console, rows: Rows, config_path: str | None, watch: bool) -> None:
    """Draw once for each poll of the status. The last drawing stays on the terminal."""
    from rich.live import Live

    samples = Samples(rows)
    with Live(samples.picture(rows), console=out, auto_refresh=False) as live:
        for number, rows in enumerate(_polls(config_path, WATCH_PERIOD if watch else PERIOD), 1):
            samples.add(rows)
            live.update(samples.picture(rows), refresh=True)
            if not watch and number == SAMPLES:
                break


def _polls(config_path: str | None, period: float) -> Iterator[Rows]:
    """Yield the rows of the status, once for each period."""
    while True:
        time.sleep(period)
        yield collect(config_path, "status")


class Samples:
    """Rates of flows and bytes, computed from one poll of the status to the next."""

    def __init__(self, rows: Rows) -> None:
        self._last, self._when = _totals(rows), time.monotonic()
        self._series: dict[str, deque[float]] = {
            name: deque(maxlen=WIDTH) for name in ("flows", "new", "from clients", "to clients")
        }

    def add(self, rows: Rows) -> None:
        """Add the rows of a poll."""
        totals, now = _totals(rows), time.monotonic()
        seconds = max(now - self._when, 1e-6)
        # A process that was replaced counts anew: nothing is negative.
        rates = {name: max(totals[name] - self._last[name], 0) / seconds for name in totals}
        self._last, self._when = totals, now
        self._series["flows"].append(totals["flows"])
        self._series["new"].append(rates["begun"])
        self._series["from clients"].append(rates["up"])
        self._series["to clients"].append(rates["down"])

    def line(self) -> str:
        """The latest sample in one line."""
        last = {name: series[-1] for name, series in self._series.items()}
        return (
            f"flows={last['flows']:.0f} new/s={last['new']:.0f} "
            f"up_bytes/s={last['from clients']:.0f} down_bytes/s={last['to clients']:.0f}"
        )

    def picture(self, rows: Rows) -> RenderableType:
        """The table of the processes, and a line of blocks for each series."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        drawn = Table.grid(padding=(0, 2))
        for name, series in self._series.items():
            now = series[-1] if series else 0.0
            width = WIDTH if len(series) > SAMPLES else SAMPLES
            drawn.add_row(name, Text(sparkline(series, width), style="cyan"), _said(name, now))
        return Group(table_of(rows, COLUMNS), "", drawn)


def _said(name: str, value: float) -> str:
    from rich.filesize import decimal

    if name == "flows":
        return f"{value:.0f}"
    return f"{value:.0f}/s" if name == "new" else f"{decimal(int(value))}/s"


def _totals(rows: Rows) -> dict[str, int]:
    """Sum up the rows: flows at this moment and, since the processes started, flows and bytes."""

    def total(key: str) -> int:
        values: list[Any] = [row.get(key, 0) for row in rows]
        return sum(value for value in values if isinstance(value, int))

    return {
        "flows": total("flows"),
        "begun": total("flows") + total("finished"),
        "up": total("up"),
        "down": total("down"),
    }

"""`algate status`, `flows`, `pinholes`, `calls`: what is live, asked of the running processes over their sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gateway.cli.options import config_option, json_option
from gateway.config_file import load_config
from gateway.errors import AlgateError
from gateway.observe.admin_wire import Rows, ask

TIMEOUT = 3.0  # seconds for each process to answer


@click.command()
@config_option
@json_option
def status(config_path: str | None, as_json: bool) -> None:
    """Show the processes, their flows and bytes.

    Example: algate status --json
    """
    _show(collect(config_path, "status"), as_json, ["process", "pid", "state", "flows", "finished", "up", "down"])


@click.command()
@config_option
@json_option
def flows(config_path: str | None, as_json: bool) -> None:
    """Show the flows that are live.

    Example: algate flows
    """
    columns = ["id", "front", "client", "server", "module", "up", "down", "age"]
    _show(collect(config_path, "flows"), as_json, columns, age=lambda row: f"{time.time() - row['since']:.0f} s")


@click.command()
@config_option
@json_option
def pinholes(config_path: str | None, as_json: bool) -> None:
    """Show the pinholes that are open.

    Example: algate pinholes --json
    """
    columns = ["id", "protocol", "public", "target", "peer", "reason", "flow", "packets", "bytes", "left"]
    _show(collect(config_path, "pinholes"), as_json, columns, left=lambda row: f"{row['expires'] - time.time():.0f} s")


@click.command()
@config_option
@json_option
def calls(config_path: str | None, as_json: bool) -> None:
    """Show the calls under way, with their media packets as the kernel counts them.

    Example: algate calls
    """

    def of_media(row: dict[str, Any], which: str) -> str:
        return " ".join(str(media[which]) for media in row["media"]) or "-"

    _show(
        collect(config_path, "calls"),
        as_json,
        ["client", "server", "caller", "callee", "state", "duration", "media", "in", "out"],
        duration=lambda row: f"{row['duration']:.0f} s",
        media=lambda row: of_media(row, "public"),
        **{"in": lambda row: of_media(row, "packets_in"), "out": lambda row: of_media(row, "packets_out")},
    )


def collect(config_path: str | None, verb: str) -> Rows:
    """The rows of all processes of the instance. AlgateError if none runs, or one of them does not answer."""
    run_dir = Path(load_config(config_path).process.run_dir)
    sockets = sorted(run_dir.glob("*.sock"))
    if not sockets:
        raise AlgateError(f"no gateway is running (there is no socket in {run_dir})")
    rows: Rows = []
    for path in sockets:
        try:
            rows += ask(str(path), verb, TIMEOUT)
        except OSError as error:
            raise AlgateError(f"{path}: no answer ({error})") from error
    return rows


def _show(rows: Rows, as_json: bool, columns: Sequence[str], **derived: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        cells = (derived[column](row) if column in derived else row.get(column) for column in columns)
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    console = Console()
    if not console.is_terminal:  # a pipe gets whole lines
        console.width = max(console.width, 400)
    console.print(table)

"""`algate explain FILE.pcap` and `algate trace`: what is changed in each message, and why."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
from rich.text import Text

from gateway.cli.live import collect
from gateway.cli.options import config_option, json_option
from gateway.cli.output import console, show_json
from gateway.config.load import load_config
from gateway.driver.capture import read
from gateway.driver.offline import Rehearsal
from gateway.model.requests import Network
from gateway.observe.trace import Row, render

POLL = 0.25  # seconds
# Who is inside if the configuration does not say: private addresses.
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_EXAMPLE = "192.0.2.1"


@click.command()
@config_option
@json_option
@click.option(
    "--public", metavar="ADDRESS", help=f"The router's public address (default: network.outside, or {_EXAMPLE})."
)
@click.argument("capture", metavar="FILE.pcap", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def explain(config_path: str | None, as_json: bool, public: str | None, capture: Path) -> None:
    """Show what modules would change in a capture.

    The capture is one of the inside interface. Nothing is sent or opened.

    \b
    Examples:
      algate explain call.pcap
      algate explain --public 203.0.113.2 --json call.pcap
    """
    config = load_config(config_path)
    if public is None:
        public = config.network.outside if config.network.outside != "auto" else _EXAMPLE
    inside: tuple[Network, ...] = config.inside_networks or tuple(map(ipaddress.ip_network, _PRIVATE))
    rows = Rehearsal(config, inside, public).run(read(capture))
    if as_json:
        show_json(list(rows))
    else:
        _print(rows)


@click.command()
@config_option
@json_option
def trace(config_path: str | None, as_json: bool) -> None:
    """Show messages as they pass, and their edits.

    Those of SIP, over UDP and TCP, until interrupted; with --json those of a moment ago.

    \b
    Examples:
      algate trace
      algate trace --json
    """
    if as_json:
        show_json(collect(config_path, "trace"))
        return
    seen: dict[str, int] | None = None  # the latest message of each process
    while True:
        rows = collect(config_path, "trace")
        last: dict[str, int] = {}
        for row in rows:
            last[row["process"]] = max(last.get(row["process"], 0), row["number"])
        if seen is not None:
            new, missed = _unseen(rows, seen, last)
            if missed:
                click.echo(f"({missed} messages passed unseen)")
            _print(new)
        seen = last
        time.sleep(POLL)


def _unseen(rows: Iterable[Row], seen: Mapping[str, int], last: Mapping[str, int]) -> tuple[list[Row], int]:
    """The rows that are new, in the order of time, and how many there were that no row is left of."""
    new: list[Row] = []
    missed = 0
    for process in last:
        before = seen.get(process, 0)
        if last[process] < before:  # another process has taken its place
            before = 0
        of_it = [row for row in rows if row["process"] == process and row["number"] > before]
        missed += last[process] - before - len(of_it)
        new += of_it
    return sorted(new, key=lambda row: float(row["time"])), missed


def _print(rows: Iterable[Row]) -> None:
    out = console()
    for row in rows:
        if "event" in row:
            out.print(Text.assemble((f"* {row['event']} ", "bold yellow"), row["detail"]), soft_wrap=True)
        else:
            for line in render(row):
                out.print(line, soft_wrap=True)

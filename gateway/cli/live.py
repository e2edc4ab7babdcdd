"""`algate flows`, `pinholes` and `calls`: tables of what exists now, collected from the running processes."""

from __future__ import annotations

import time
from typing import Any

import click

from gateway.cli.instance import ask_at, run_dir_of
from gateway.cli.options import config_option, json_option
from gateway.cli.output import show_json, show_rows
from gateway.config.load import load_config
from gateway.observe.admin import Rows


@click.command()
@config_option
@json_option
def flows(config_path: str | None, as_json: bool) -> None:
    """Show the flows that are live.

    \b
    Examples:
      algate flows
      algate flows --json
    """
    columns = ["id", "front", "client", "server", "user", "module", "up", "down", "age"]
    show_rows(live(config_path, "flows"), as_json, columns, age=lambda row: f"{time.time() - row['since']:.0f} s")


@click.command()
@config_option
@json_option
def pinholes(config_path: str | None, as_json: bool) -> None:
    """Show the pinholes that are open.

    `description` is the name that a client has given to a mapping for which it has asked.

    \b
    Examples:
      algate pinholes
      algate pinholes --json
    """
    columns = ["id", "kind", "protocol", "public", "target", "peer", "reason", "flow", "packets", "bytes", "left"]
    rows = live(config_path, "pinholes")
    if any(row["description"] for row in rows):
        columns.append("description")
    show_rows(rows, as_json, columns, left=lambda row: f"{row['expires'] - time.time():.0f} s")


@click.command()
@config_option
@json_option
def calls(config_path: str | None, as_json: bool) -> None:
    """Show the calls under way, and the peers.

    Media packets are counted by the kernel. A peer is a client and a server that exchange messages; its state is
    "edited" (messages are edited), "stood-down" (they are left alone), "revoked" (they are not read) or "unread" (none
    could be). `reason` says why, or how many could not be read and why the latest one, and `until` for how many more
    seconds. With --json the row of a peer has the "kind" "peer".

    \b
    Examples:
      algate calls
      algate calls --json
    """

    def of_media(row: dict[str, Any], which: str) -> str:
        return " ".join(str(media[which]) for media in row["media"]) or "-"

    rows = live(config_path, "calls")
    if as_json:
        show_json(rows)
        return
    peers = [row for row in rows if row.get("kind") == "peer"]
    found = [row for row in rows if row.get("kind") != "peer"]
    show_rows(
        found,
        False,
        ["client", "server", "caller", "callee", "state", "duration", "media", "in", "out", "call_id"],
        duration=lambda row: f"{row['duration']:.0f} s",
        media=lambda row: of_media(row, "public"),
        **{"in": lambda row: of_media(row, "packets_in"), "out": lambda row: of_media(row, "packets_out")},
    )
    if peers:
        show_rows(
            peers,
            False,
            ["client", "server", "state", "reason", "until"],
            until=lambda row: "-" if row["until"] is None else f"{row['until']:.0f} s",
        )


def live(config_path: str | None, what: str) -> Rows:
    """Return the rows of "flows", "pinholes" or "calls", in which moments are Unix time. Raises AlgateError as
    `collect` does."""
    rows = collect(config_path, what)
    match what:
        case "pinholes":
            described = {row["lease"]: row["description"] for row in collect(config_path, "mappings")}
            for row in rows:
                row["description"] = described.get(row["id"], "")
        case "calls":
            rows += ({"kind": "peer", **row} for row in collect(config_path, "peers"))
    return rows


def collect(config_path: str | None, verb: str) -> Rows:
    """Collect the rows of all processes of the instance. Raises AlgateError if no gateway runs, or a process does not
    answer."""
    run_dir = run_dir_of(load_config(config_path))
    return [row for path in sorted(run_dir.glob("*.sock")) for row in ask_at(path, verb)]

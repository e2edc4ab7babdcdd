"""`algate reload`, `drain` and `kick`: commands that change a running gateway, through the sockets of its processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from gateway.cli.instance import TIMEOUT, ask_at, changing_rules, run_dir_of
from gateway.cli.options import config_option, json_option
from gateway.cli.output import console, show_json
from gateway.config.load import load_config
from gateway.host import rules
from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.admin import Rows, ask

POLL = 0.1  # seconds between two questions whether it is done


@click.command()
@config_option
@json_option
@click.option(
    "--upgrade",
    is_flag=True,
    help="Start new processes from the program as it is installed now, and let them take over.",
)
def reload(config_path: str | None, as_json: bool, upgrade: bool) -> None:
    """Read the configuration again and use it.

    The configuration is validated first. If it has a mistake, the old one stays in use and the exit code is 2. Flows
    that the new rules do not allow are ended; all others go on. With --upgrade new processes take over the listeners;
    use it for a new version of the program, and for keys that only take effect in new processes. The old processes end
    when their flows have ended.

    \b
    Examples:
      algate reload
      algate reload --upgrade
    """
    config = load_config(config_path)
    outcome = _have_done(run_dir_of(config), "upgrade" if upgrade else "reload")
    # A supervisor that is not root cannot do this; nor does a new one know what the old one had.
    to_be_applied = config.transparent_enabled and (upgrade or outcome["rules"] == "to be applied")
    if to_be_applied and os.geteuid() == 0 and rules.applied(config):
        with changing_rules(config):
            rules.apply(config)
        outcome["rules"] = "changed"
    if as_json:
        show_json([outcome])
    elif upgrade:
        click.echo(f"process {outcome['pid']} has taken over")
    else:
        _print_outcome(outcome)


def _print_outcome(outcome: dict[str, Any]) -> None:
    for line in outcome["changed"]:
        click.echo(line)
    if not outcome["changed"]:
        click.echo("nothing has changed")
    if outcome["listeners_added"]:
        click.echo(f"listening at {', '.join(outcome['listeners_added'])}")
    if outcome["listeners_removed"]:
        click.echo(f"no longer listening at {', '.join(outcome['listeners_removed'])}")
    if outcome["rules"] == "changed":
        click.echo("the iptables rules follow")
    elif outcome["rules"] == "to be applied":
        click.echo("the iptables rules are others now: `algate rules apply` (as root)")
    if outcome["ended"]:
        click.echo(f"ended, as no longer allowed: {outcome['ended']} flows and pinholes")
    if outcome["restart"]:
        click.echo(f"not in use before `algate reload --upgrade` or a restart: {', '.join(outcome['restart'])}")


@click.command()
@config_option
def drain(config_path: str | None) -> None:
    """End the gateway when its flows have ended.

    The gateway accepts no new connections and waits for all flows to end. New connections of unconfigured clients then
    go straight through the NAT, if the iptables rules are applied. There is no deadline: SIGTERM ends the gateway at
    once. This command shows how many flows are left, and returns when the gateway has ended. ^C stops this command
    alone: the gateway goes on draining.

    \b
    Example:
      algate drain
    """
    config = load_config(config_path)
    run_dir = run_dir_of(config)
    if os.geteuid() == 0:
        ask_at(run_dir / "supervisor.sock", "leave_rules")
        rules.stop_redirecting(config)
    _have_done(run_dir, "drain")
    out = console()
    said, most = -1, 0
    from rich.progress import Progress  # it takes longer to load than all else

    with Progress(*Progress.get_default_columns()[:2], console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task("draining")
        while (run_dir / "supervisor.sock").exists():
            left = _flows_left(run_dir)
            most = max(most, left)
            bar.update(task, description=f"{left} flows are left", total=most, completed=most - left)
            if left != said and not out.is_terminal:
                click.echo(f"{left} flows are left")
            said = left
            time.sleep(POLL)
    click.echo("drained")


def _flows_left(run_dir: Path) -> int:
    left = 0
    for path in run_dir.glob("worker-*.sock"):
        try:
            left += sum(row["flows"] for row in ask(str(path), "status", TIMEOUT))
        except OSError:
            pass  # it has just ended
    return left


@click.command()
@config_option
@json_option
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def kick(config_path: str | None, as_json: bool, ids: tuple[str, ...]) -> None:
    """End flows, pinholes or calls by their ids.

    The ids are those that `algate flows`, `algate pinholes` and `algate calls` show. For a call, its media are ended.
    The exit code is 1 if nothing has such an id.

    \b
    Examples:
      algate kick w0-1a2b3c4d-17
      algate flows --json | jq -r '.[] | select(.user == "ann") | .id' | xargs algate kick
    """
    run_dir = run_dir_of(load_config(config_path))
    rows: Rows = []
    missing = []
    for name in ids:
        found = [row for path in sorted(run_dir.glob("*.sock")) for row in ask_at(path, "kick", name)]
        rows += found
        if not found:
            missing.append(name)
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['id']}: {row['kind']} of {row['client']} with {row['server'] or 'anybody'} ended")
    if missing:
        raise AlgateError(f"there is no flow, pinhole or call {', '.join(missing)}")


def _have_done(run_dir: Path, verb: str) -> dict[str, Any]:
    """Ask the supervisor for a job and wait for its outcome. Raises AlgateError with the supervisor's message if it
    fails."""
    path = run_dir / "supervisor.sock"
    (ticket,) = ask_at(path, verb)
    outcome = _wait_for(path, str(ticket["ticket"]))
    if "error" in outcome:
        raise (ConfigError if outcome["usage"] else AlgateError)(str(outcome["error"]))
    return outcome


def _wait_for(path: Path, ticket: str) -> dict[str, Any]:
    """Poll for the outcome of the job with this ticket. The supervisor answers nothing while it works on a job."""
    silent = 0
    while True:
        try:
            rows = ask(str(path), "outcome", TIMEOUT, ticket)
            silent = 0
        except OSError as error:
            rows, silent = [], silent + 1
            if silent > 10 or not path.exists():
                raise AlgateError(f"{path}: no answer ({error})") from error
        if rows:
            return rows[0]
        time.sleep(POLL)

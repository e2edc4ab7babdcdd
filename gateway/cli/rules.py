"""`algate rules show|apply|remove`: the iptables rules of a configuration."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from gateway.cli.instance import TIMEOUT
from gateway.cli.options import config_option, json_option
from gateway.cli.output import show_json
from gateway.config.load import load_config
from gateway.config.schema import Config
from gateway.host.rules import FAMILIES, apply, remove, render
from gateway.observe.admin import ask


@click.group()
def rules() -> None:
    """Show, apply or remove the iptables rules.

    They bring unconfigured clients to the gateway.

    \b
    Examples:
      algate rules show
      sudo algate rules apply
    """


@rules.command()
@config_option
@click.option("--family", type=click.Choice(FAMILIES), help="Only this family, as input for ip(6)tables-restore.")
@json_option
def show(config_path: str | None, family: str | None, as_json: bool) -> None:
    """Print the rules that `apply` would load.

    Needs no root.

    \b
    Examples:
      algate rules show
      algate rules show --family ipv6
      algate rules show --json
    """
    config = load_config(config_path)
    texts = {name: render(config, name) for name in FAMILIES if family in (None, name)}
    if as_json:
        show_json([{"family": name, "rules": text} for name, text in texts.items()])
        return
    for name, text in texts.items():
        if text is None:
            click.echo(f"# {name}: no inside network of this family, no rules")
        else:
            click.echo(f"# {name}\n{text}", nl=False)


@rules.command("apply")
@config_option
def apply_command(config_path: str | None) -> None:
    """Load the rules.

    Twice is as once, and a failure changes nothing.

    \b
    Example:
      sudo algate rules apply
    """
    config = load_config(config_path)
    apply(config)
    _tell_supervisor(config, "keep_rules")


@rules.command("remove")
@config_option
def remove_command(config_path: str | None) -> None:
    """Take the rules away.

    Everything is then as it was before `apply`.

    \b
    Example:
      sudo algate rules remove
    """
    config = load_config(config_path)
    _tell_supervisor(config, "leave_rules")  # or it would put them back
    remove(config)
    _tell_supervisor(config, "leave_rules")


def _tell_supervisor(config: Config, verb: str) -> None:
    """Tell the gateway, if one runs and may be asked."""
    with suppress(OSError):
        ask(str(Path(config.process.run_dir) / "supervisor.sock"), verb, TIMEOUT)

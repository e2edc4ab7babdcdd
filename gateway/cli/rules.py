"""`algate rules show|apply|remove`: the iptables rules of a configuration."""

from __future__ import annotations

import click

from gateway.broker.rules import FAMILIES, apply, remove, render
from gateway.cli.options import config_option
from gateway.config_file import load_config


@click.group()
def rules() -> None:
    """The iptables rules that bring unconfigured clients to the gateway."""


@rules.command()
@config_option
@click.option("--family", type=click.Choice(FAMILIES), help="Only this family, as input for ip(6)tables-restore.")
def show(config_path: str | None, family: str | None) -> None:
    """Print the rules that `apply` would load. Needs no root."""
    config = load_config(config_path)
    for name in FAMILIES:
        if family not in (None, name):
            continue
        text = render(config, name)
        if text is None:
            click.echo(f"# {name}: no inside network of this family, no rules")
        else:
            click.echo(f"# {name}\n{text}", nl=False)


@rules.command("apply")
@config_option
def apply_command(config_path: str | None) -> None:
    """Load the rules; twice is as once, and a failure changes nothing."""
    apply(load_config(config_path))


@rules.command("remove")
@config_option
def remove_command(config_path: str | None) -> None:
    """Take the rules away; everything is then as it was before `apply`."""
    remove(load_config(config_path))

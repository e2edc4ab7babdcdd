"""`algate rules show|apply|remove`: the iptables rules of a configuration."""

from __future__ import annotations

from contextlib import suppress

import click

from gateway.cli.instance import changing_rules, tell_supervisor
from gateway.cli.options import config_option, json_option
from gateway.cli.output import show_json
from gateway.config.load import load_config
from gateway.config.schema import Config
from gateway.host import foreign_chains
from gateway.host.native import lines_for, native
from gateway.host.rules import FAMILIES, apply, remove, render
from gateway.model.errors import AlgateError


@click.group()
def rules() -> None:
    """Show, apply or remove the iptables rules.

    The rules redirect the traffic of unconfigured clients to the gateway.

    \b
    Examples:
      algate rules show
      sudo algate rules apply
    """


@rules.command()
@config_option
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    help="Print the rules of this family only, as input for iptables-restore or ip6tables-restore.",
)
@click.option("--nft", is_flag=True, help="Print the rules as nft text, for a host that uses nftables.service.")
@json_option
def show(config_path: str | None, family: str | None, nft: bool, as_json: bool) -> None:
    """Print the rules that `apply` would load.

    Needs no root. With --nft the rules are printed as tables of their own, to be included in /etc/nftables.conf,
    followed by the lines that your chains at input and forward need if they drop packets: in nftables an accept in one
    table does not overrule a drop in another.

    \b
    Examples:
      algate rules show
      algate rules show --family ipv6
      algate rules show --nft
      algate rules show --json
    """
    config = load_config(config_path)
    if nft:
        if as_json or family:
            raise click.UsageError("--nft cannot be combined with --family or --json: it prints both families as text")
        click.echo(_nft_text(config), nl=False)
        return
    texts = {name: render(config, name) for name in FAMILIES if family in (None, name)}
    if as_json:
        show_json([{"family": name, "rules": text} for name, text in texts.items()])
        return
    for name, text in texts.items():
        if text is None:
            click.echo(f"# {name}: no inside network of this family, no rules")
        else:
            click.echo(f"# {name}\n{text}", nl=False)


def _nft_text(config: Config) -> str:
    text = f"# The rules of {config.instance} as nft tables of their own.\n{native(config)}"
    for hook in ("input", "forward"):
        text += f"\n# First in a chain at {hook} that drops (of a table inet; in ip or ip6 those of its family):\n"
        text += "".join(f'#   {line} comment "{config.instance}"\n' for line in lines_for(config, hook, "inet"))
    return text


@rules.command("apply")
@config_option
@click.option("--if-any", is_flag=True, help="Succeed where the configuration redirects nothing: for services.")
def apply_command(config_path: str | None, if_any: bool) -> None:
    """Load the rules.

    Safe to repeat: running it again has no further effect. If it fails, nothing is changed.

    \b
    Example:
      sudo algate rules apply
    """
    config = load_config(config_path)
    if if_any and not config.transparent_enabled:
        return
    with changing_rules(config):
        apply(config)
        if config.rules.foreign == "add":
            for failure in foreign_chains.add(config):
                click.echo(f"algate: {failure}", err=True)
        else:
            _print_missing(config)


@rules.command("remove")
@config_option
def remove_command(config_path: str | None) -> None:
    """Remove the rules.

    Netfilter is then as it was before `apply`.

    \b
    Example:
      sudo algate rules remove
    """
    config = load_config(config_path)
    tell_supervisor(config, "leave_rules")  # or it would put them back
    remove(config)
    with suppress(AlgateError):  # without nft there is nothing of ours in its tables
        foreign_chains.remove(config.instance)
    tell_supervisor(config, "leave_rules")


def _print_missing(config: Config) -> None:
    """Print the lines that chains of other firewalls seem to need, on standard error."""
    with suppress(AlgateError):
        missing = foreign_chains.missing(foreign_chains.ruleset(), config)
        for chain in dict.fromkeys(each.chain for each in missing):
            click.echo(f"{chain} seems to drop what the gateway admits ({chain.why}). It needs:", err=True)
            for each in missing:
                if each.chain == chain:
                    click.echo(f"  {each.command(config.instance)}", err=True)

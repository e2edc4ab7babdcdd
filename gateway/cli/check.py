"""`algate check`: validates a configuration and prints it."""

from __future__ import annotations

import tomllib

import click

from gateway.cli.explain import explain
from gateway.cli.instance import may_run
from gateway.cli.options import config_option, json_option
from gateway.cli.output import show_json
from gateway.config.doubts import doubts
from gateway.config.load import load_config
from gateway.config.schema import DEFAULT_PATH
from gateway.model.errors import ConfigError
from gateway.supervisor.preflight import listening, placed, refusals, surprises, unseen


@click.command()
@config_option
@json_option
@click.option("--explain", "request", metavar="REQUEST", help="Say which rule decides on a request, and why.")
def check(config_path: str | None, as_json: bool, request: str | None) -> None:
    """Validate a configuration and print it.

    Prints the configuration in effect, defaults included. If it cannot be used, or `algate run` would
    refuse it on this host, the exit code is 2 and a message names the file, the line and the key. Settings
    that are valid but hardly meant, such as a rule that never decides, are warned of on standard error, and so
    is what this user may not read.

    \b
    Examples:
      algate check -c ./algate.toml
      algate check --json
      algate check --explain "connect 192.168.56.10 -> example.com:443 user ann"
      algate check --explain "map 192.168.56.10 -> 3074"
    """
    config = load_config(config_path)
    source = config_path or str(DEFAULT_PATH)
    for message in refusals(config):
        raise ConfigError(placed(config, message, source))
    ports = () if may_run(config) else listening(config)
    for message in (*doubts(config), *surprises(config), *unseen(config), *ports):
        click.echo(f"algate: warning: {placed(config, message, source)}", err=True)
    if request is not None:
        explain(config, source, request, as_json)
    elif as_json:
        show_json([tomllib.loads(config.to_toml())])
    else:
        click.echo(config.to_toml(), nl=False)

"""`algate check`"""

from __future__ import annotations

import click

from gateway.cli.explain import explain
from gateway.cli.options import config_option
from gateway.config import DEFAULT_PATH
from gateway.config_file import load_config


@click.command()
@config_option
@click.option("--explain", "request", metavar="REQUEST", help="Say which rule decides on a request, and why.")
def check(config_path: str | None, request: str | None) -> None:
    """Validate a configuration and print what is in effect, defaults included.

    Exits with 2 and a message that names the file and the line or key if it cannot be used.

    Examples: algate check -c ./algate.toml

    algate check --explain "connect 192.168.56.10 -> example.com:443 user ann"
    """
    if request is not None:
        config = load_config(config_path)
        explain(config, config_path or str(DEFAULT_PATH), request)
        return
    click.echo(load_config(config_path).to_toml(), nl=False)

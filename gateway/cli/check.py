"""`algate check`"""

from __future__ import annotations

import click

from gateway.cli.options import config_option
from gateway.config_file import load_config


@click.command()
@config_option
def check(config_path: str | None) -> None:
    """Validate a configuration and print what is in effect, defaults included.

    Exits with 2 and a message that names the file and the line or key if it cannot be used.

    Example: algate check -c ./algate.toml
    """
    click.echo(load_config(config_path).to_toml(), nl=False)

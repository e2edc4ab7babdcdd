"""`algate run`: runs the gateway in the foreground."""

from __future__ import annotations

import sys
from functools import partial

import click

from gateway.cli.options import config_option
from gateway.config.load import load_config
from gateway.supervisor import supervisor


@click.command()
@config_option
def run(config_path: str | None) -> None:
    """Run the gateway in the foreground.

    Logs "ready" when it serves. On SIGTERM it lets flows end for `process.drain_timeout` seconds, then exits with 0.

    \b
    Examples:
      algate run
      algate run -c /etc/algate/algate.toml
    """
    sys.exit(supervisor.run(partial(load_config, config_path)))

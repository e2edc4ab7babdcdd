"""`algate run`: runs the gateway in the foreground."""

from __future__ import annotations

import signal
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
    try:
        code = supervisor.run(partial(load_config, config_path))
    finally:
        # Nothing is left to end. Python takes its handlers away when it ends, and another SIGTERM would be the
        # exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)

"""Options that several commands share."""

from __future__ import annotations

import click

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    envvar="ALGATE_CONFIG",
    help="Configuration file (default: $ALGATE_CONFIG, else /etc/algate/algate.toml if it exists). The files "
    "conf.d/*.toml beside it are read after it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON array of objects.")
unread_config_option = click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    expose_value=False,
    help="Accepted as by every command, but this command needs no configuration.",
)

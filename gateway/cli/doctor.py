"""`algate doctor`"""

from __future__ import annotations

import json
import sys

import click
import msgspec

from gateway.cli.options import config_option, json_option
from gateway.config_file import load_config
from gateway.doctor import examine

_SIGNS = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}


@click.command()
@config_option
@json_option
def doctor(config_path: str | None, as_json: bool) -> None:
    """Say whether this host is fit for a configuration, and what to do if it is not.

    Looks at programs, forwarding, interfaces and kernel helpers, and tries what it needs of the kernel in a network
    namespace of its own. Changes nothing. Exits with 1 if something stops the gateway.

    Example: sudo algate doctor -c /etc/algate/algate.toml
    """
    found = examine(load_config(config_path))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(f"{_SIGNS[one.status]}  {one.check}: {one.detail}")
            if one.remedy:
                click.echo(f"         -> {one.remedy}")
    sys.exit(1 if any(one.status == "failed" for one in found) else 0)

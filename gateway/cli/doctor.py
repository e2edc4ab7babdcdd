"""`algate doctor`: checks whether this host is fit for algate."""

from __future__ import annotations

import sys

import click
import msgspec
from rich.text import Text

from gateway.cli.options import config_option, json_option
from gateway.cli.output import console, show_json, styled
from gateway.config.load import load_config
from gateway.host.doctor import examine


@click.command()
@config_option
@json_option
def doctor(config_path: str | None, as_json: bool) -> None:
    """Check whether this host is fit for algate.

    Checks programs, forwarding, interfaces and kernel helpers, and tries the features of the kernel that are needed in
    a network namespace of its own. Says what to do about each problem. Changes nothing. The exit code is 1 if something
    keeps the gateway from working.

    \b
    Examples:
      sudo algate doctor
      sudo algate doctor --json -c ./algate.toml
    """
    found = examine(load_config(config_path))
    if as_json:
        show_json([msgspec.to_builtins(finding) for finding in found])
    else:
        out = console()
        for finding in found:
            sign = styled(finding.status)
            sign.pad_right(7 - len(sign))
            out.print(Text.assemble(sign, f"  {finding.check}: {finding.detail}"), soft_wrap=True)
            if finding.remedy:
                out.print(Text(f"         -> {finding.remedy}"), soft_wrap=True)
    sys.exit(1 if any(finding.status == "failed" for finding in found) else 0)

"""The command line: `algate COMMAND`, with one file for each command. An AlgateError ends it with one line on standard
error and an exit code."""

from __future__ import annotations

import sys

import click

from gateway import __version__
from gateway.cli.check import check
from gateway.cli.classic import finger, ftp, telnet, whois
from gateway.cli.completion import completion
from gateway.cli.control import drain, kick, reload
from gateway.cli.doctor import doctor
from gateway.cli.exec import exec_
from gateway.cli.live import calls, flows, pinholes
from gateway.cli.modules import modules
from gateway.cli.passwd import passwd
from gateway.cli.rules import rules
from gateway.cli.run import run
from gateway.cli.status import status
from gateway.cli.trace import explain, trace
from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.sinks import said_to

EXIT_FAILED = 1
EXIT_CONFIG = 2
# For the manual pages and the reference.
EXIT_CODES = {
    0: "It was done.",
    EXIT_FAILED: "It failed, and a line on standard error says why. Of `algate doctor`: something stops the gateway.",
    EXIT_CONFIG: "The configuration or the command line cannot be used; the line names the file and the key.",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="algate")
def cli() -> None:
    """An application-level gateway for Linux NAT routers.

    \b
    Examples:
      algate run
      algate check
      algate status --help
    """


COMMANDS = (
    run, check, doctor, rules, status, flows, pinholes, calls, kick, reload, drain, explain, trace, modules, passwd,
    exec_, ftp, telnet, finger, whois, completion,
)  # fmt: skip

for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point of the `algate` script."""
    try:
        cli()
    except ConfigError as error:
        click.echo(f"{said_to(sys.stderr)}algate: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except AlgateError as error:
        click.echo(f"{said_to(sys.stderr)}algate: {error}", err=True)
        sys.exit(EXIT_FAILED)

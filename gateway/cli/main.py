"""The command line: `algate COMMAND`, with one file for each command. An AlgateError ends it with one line on standard
error and an exit code."""

from __future__ import annotations

import importlib
import sys

import click

from gateway import __version__
from gateway.model.errors import AlgateError, ConfigError

EXIT_FAILED = 1
EXIT_CONFIG = 2
# For the manual pages and the reference.
EXIT_CODES = {
    0: "It was done.",
    EXIT_FAILED: "It failed, and a line on standard error says why. Of `algate doctor`: something stops the gateway.",
    EXIT_CONFIG: "The configuration or the command line cannot be used; the line names the file and the key.",
}


# Where each command is. It is imported when somebody asks for it: a script that asks for the status every second does
# not wait for what reads captures.
PLACES = {
    "run": "run:run",
    "check": "check:check",
    "doctor": "doctor:doctor",
    "rules": "rules:rules",
    "status": "status:status",
    "flows": "live:flows",
    "pinholes": "live:pinholes",
    "calls": "live:calls",
    "kick": "control:kick",
    "reload": "control:reload",
    "drain": "control:drain",
    "explain": "trace:explain",
    "trace": "trace:trace",
    "modules": "modules:modules",
    "passwd": "passwd:passwd",
    "exec": "exec:exec_",
    "ftp": "classic:ftp",
    "telnet": "classic:telnet",
    "finger": "classic:finger",
    "whois": "classic:whois",
    "completion": "completion:completion",
}


class Commands(click.Group):
    """The commands of `PLACES`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None if there is none of this name."""
        if cmd_name not in PLACES:
            return None
        module, _, name = PLACES[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"gateway.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is asked for. Raises click.UsageError, with what may be meant: click itself looks
        only among commands that are imported already."""
        if args[0] not in PLACES and not args[0].startswith("-"):
            from difflib import get_close_matches

            meant = " or ".join(f"'{name}'" for name in get_close_matches(args[0], PLACES))
            ctx.fail(f"No such command '{args[0]}'.{f' Did you mean {meant}?' if meant else ''}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="algate")
def cli() -> None:
    """An application-level gateway for Linux NAT routers.

    \b
    Examples:
      algate run
      algate check
      algate status --help
    """


def main() -> None:
    """Entry point of the `algate` script."""
    try:
        cli()
    except ConfigError as error:
        _say(error)
        sys.exit(EXIT_CONFIG)
    except AlgateError as error:
        _say(error)
        sys.exit(EXIT_FAILED)


def _say(error: AlgateError) -> None:
    from gateway.observe.sinks import said_to  # it brings the log, which the client's commands do without

    click.echo(f"{said_to(sys.stderr)}algate: {error}", err=True)

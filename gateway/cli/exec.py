"""`algate exec`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from gateway.client.engine.program import ENGINES, HELP, PUBLISHED, TIMEOUT
from gateway.client.engine.program import main as run_program


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND ...")
@click.option(
    "--via",
    multiple=True,
    metavar="URL",
    help="URL of the proxy. Given several times, the proxies are a chain, the nearest first.",
)
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help=HELP["engine"])
@click.option("--dns", default="auto", show_default=True, metavar="MODE", help=HELP["dns"])
@click.option("--direct", multiple=True, metavar="NETWORK", help=HELP["direct"])
@click.option("--publish", multiple=True, metavar=PUBLISHED, help=HELP["publish"])
@click.option("--strict", is_flag=True, help=HELP["strict"])
@click.option("--trace", is_flag=True, help=HELP["trace"])
@click.option("--quiet", "-q", is_flag=True, help=HELP["quiet"])
@click.option(
    "--timeout",
    type=float,
    default=TIMEOUT,
    show_default=True,
    help="Seconds within which a connection must be established.",
)
def exec_(
    command: Sequence[str],
    via: Sequence[str],
    engine: str,
    dns: str,
    direct: Sequence[str],
    publish: Sequence[str],
    timeout: float,
    **flags: bool,
) -> None:
    """Run any program through a gateway.

    The program has a network namespace of its own, and no interface of it leads out: connections, datagrams and names
    go to the proxy, or nowhere. Static and Go programs, children and raw system calls are covered. The proxy is named
    as for `algate ftp`. Ends with the program's exit code; 128 and the number for a signal; 2 where it was not started.

    \b
    Examples:
      algate exec --via socks5://192.168.56.2 -- curl https://www.example.org/
      algate exec -- bash
    """
    words = [word for url in via for word in ("--via", url)]
    words += [word for network in direct for word in ("--direct", network)]
    words += [word for port in publish for word in ("--publish", port)]
    words += ["--engine", engine, "--dns", dns, "--timeout", str(timeout)]
    words += [f"--{name}" for name, given in flags.items() if given]
    sys.exit(run_program([*words, "--", *command]))

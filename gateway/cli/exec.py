"""`algate exec`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from gateway.client.engine.program import TIMEOUT
from gateway.client.engine.program import main as run_program


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND ...")
@click.option("--via", multiple=True, metavar="URL", help="The proxy; again for a chain.")
@click.option(
    "--engine", type=click.Choice(["auto", "namespace", "seccomp"]), default="auto", show_default=True, help="How."
)
@click.option(
    "--dns",
    default="auto",
    show_default=True,
    metavar="MODE",
    help="Names: resolve (by the proxy), fake (addresses that stand for names), tcp:SERVER, off; auto is resolve where "
    "the proxy can do it, else fake.",
)
@click.option("--direct", multiple=True, metavar="NETWORK", help="Connections there do not go through the proxy.")
@click.option(
    "--publish", multiple=True, metavar="[PEER:]PORT", help="A port of the program that hosts outside can reach (BIND)."
)
@click.option("--strict", is_flag=True, help="Fail if not all of the program's network can be covered.")
@click.option("--trace", is_flag=True, help="Say each connection.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say what is not covered.")
@click.option("--timeout", type=float, default=TIMEOUT, show_default=True, help="Seconds for a connection.")
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

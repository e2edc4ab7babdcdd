"""`algate ftp`, `telnet`, `finger` and `whois`: the classic clients, through a gateway."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from gateway.client.programs import finger as finger_program
from gateway.client.programs import ftp as ftp_program
from gateway.client.programs import telnet as telnet_program
from gateway.client.programs import whois as whois_program
from gateway.client.programs.common import TIMEOUT

_via = click.option(
    "--via",
    multiple=True,
    metavar="URL",
    help="URL of the proxy. Given several times, the proxies are a chain, the nearest first.",
)
_timeout = click.option(
    "--timeout",
    type=float,
    default=TIMEOUT,
    show_default=True,
    help="Seconds within which a connection must be established.",
)


def _words(via: Sequence[str], timeout: float, *words: str | None) -> list[str]:
    """Return the command line of a program. The programs are scripts of their own, and parse it themselves."""
    proxies = [word for url in via for word in ("--via", url)]
    return [*proxies, "--timeout", str(timeout), *(word for word in words if word)]


@click.command()
@click.argument("host", required=False, metavar="[HOST[:PORT]]")
@click.option("-A", "--active", is_flag=True, help="Use active mode: the server connects to the proxy for data (BIND).")
@click.option(
    "-u",
    "--user",
    metavar="NAME",
    help="User name for the server; the password is in FTP_PASSWORD. Default: anonymous.",
)
@_via
@_timeout
def ftp(host: str | None, active: bool, user: str | None, via: Sequence[str], timeout: float) -> None:
    """Transfer files through a gateway.

    Needs no gateway on this host: the proxy is `--via URL`, else ALGATE_PROXY, ALL_PROXY or SOCKS_SERVER, else `via` in
    ~/.config/algate/client.toml. Commands come from standard input. The script `rftp` is the same.

    \b
    Examples:
      algate ftp --via socks5://192.168.56.2 ftp.example.org
      echo "get pub/file" | algate ftp -A ftp.example.org
    """
    account = ("--user", user) if user else ()
    sys.exit(ftp_program.main(_words(via, timeout, "--active" if active else None, *account, host)))


@click.command()
@click.argument("host")
@click.argument("port", required=False)
@_via
@_timeout
def telnet(host: str, port: str | None, via: Sequence[str], timeout: float) -> None:
    """Open a terminal through a gateway.

    The proxy is named as for `algate ftp`. The key ^] ends the session. The script `rtelnet` is the same.

    \b
    Examples:
      algate telnet --via socks5://192.168.56.2 host.example.org
      algate telnet mail.example.org 25
    """
    sys.exit(telnet_program.main(_words(via, timeout, host, port)))


@click.command()
@click.argument("target", metavar="[USER]@HOST[:PORT]")
@click.option("-l", "long", is_flag=True, help="Ask for more of each user.")
@_via
@_timeout
def finger(target: str, long: bool, via: Sequence[str], timeout: float) -> None:
    """Ask a host for its users, through a gateway.

    The proxy is named as for `algate ftp`. The script `rfinger` is the same.

    \b
    Examples:
      algate finger ann@host.example.org
      algate finger -l @host.example.org
    """
    sys.exit(finger_program.main(_words(via, timeout, "-l" if long else None, target)))


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("-s", "--server", metavar="HOST[:PORT]", help="Ask this server, and no other.")
@_via
@_timeout
def whois(words: Sequence[str], server: str | None, via: Sequence[str], timeout: float) -> None:
    """Ask who owns a name, through a gateway.

    The proxy is named as for `algate ftp`. The server that the first answer refers to is asked too. The script
    `rwhois` is the same.

    \b
    Examples:
      algate whois example.org
      algate whois --server whois.ripe.net 192.0.2.1
    """
    sys.exit(whois_program.main(_words(via, timeout, *(("--server", server) if server else ()), *words)))

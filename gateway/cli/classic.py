"""`algate ftp`, `algate telnet`, `algate finger`, `algate whois`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from gateway.client.programs import finger as finger_program
from gateway.client.programs import ftp as ftp_program
from gateway.client.programs import telnet as telnet_program
from gateway.client.programs import whois as whois_program

# Options are read by the programs themselves, which are scripts of their own too.
_OWN_OPTIONS = {"ignore_unknown_options": True, "help_option_names": []}
_words = click.argument("words", nargs=-1, type=click.UNPROCESSED)


@click.command(context_settings=_OWN_OPTIONS)
@_words
def ftp(words: Sequence[str]) -> None:
    """Transfer files through a gateway.

    Needs no gateway on this host: the proxy is `--via URL`, else ALGATE_PROXY, ALL_PROXY or SOCKS_SERVER, else `via` in
    ~/.config/algate/client.toml. `-A` is active mode (BIND). Commands come from standard input. The script
    `rftp` is the same; `algate ftp --help` has all options.

    \b
    Examples:
      algate ftp --via socks5://192.168.56.2 ftp.example.org
      echo "get pub/file" | algate ftp -A ftp.example.org
    """
    sys.exit(ftp_program.main(words))


@click.command(context_settings=_OWN_OPTIONS)
@_words
def telnet(words: Sequence[str]) -> None:
    """Open a terminal at another host through a gateway.

    The proxy is named as for `algate ftp`. The key ^] ends the session. The script `rtelnet` is the same.

    \b
    Examples:
      algate telnet --via socks5://192.168.56.2 host.example.org
      algate telnet mail.example.org 25
    """
    sys.exit(telnet_program.main(words))


@click.command(context_settings=_OWN_OPTIONS)
@_words
def finger(words: Sequence[str]) -> None:
    """Ask a host for its users through a gateway (RFC 1288).

    The proxy is named as for `algate ftp`. The script `rfinger` is the same.

    \b
    Examples:
      algate finger ann@host.example.org
      algate finger -l @host.example.org
    """
    sys.exit(finger_program.main(words))


@click.command(context_settings=_OWN_OPTIONS)
@_words
def whois(words: Sequence[str]) -> None:
    """Ask the owner of a name or an address through a gateway (RFC 3912).

    The proxy is named as for `algate ftp`. The server that the first answer refers to is asked too. The script
    `rwhois` is the same.

    \b
    Examples:
      algate whois example.org
      algate whois --server whois.ripe.net 192.0.2.1
    """
    sys.exit(whois_program.main(words))

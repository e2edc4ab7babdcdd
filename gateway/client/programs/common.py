"""What the classic commands have in common: options, messages, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from alg.socks.errors import ProxyError
from gateway.client.proxy import Chain, Proxy, ProxySyntaxError, configured

EXIT_FAILED = 1
EXIT_USAGE = 2
TIMEOUT = 60.0

Body = Callable[[argparse.Namespace, Chain], int]


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the options that all classic commands have. Its name is that of the script that
    was started (`rftp`)."""
    made = argparse.ArgumentParser(description=description, formatter_class=_formatter)
    where = "ALGATE_PROXY, ALL_PROXY, SOCKS_SERVER, ~/.config/algate/client.toml"
    made.add_argument("--via", action="append", metavar="URL", help=f"the proxy; again for a chain (default: {where})")
    seconds = "seconds for a connection (%(default)g)"
    made.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help=seconds)
    return made


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return a formatter of help as wide as the terminal. Where the environment does not say how wide that is, argparse
    asks shutil for each option, and importing shutil is slow."""
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        width = 80
    return argparse.HelpFormatter(prog, width=width - 2)


def run(options: argparse.Namespace, body: Body, name: str) -> int:
    """Find the proxies, run `body`, and say what went wrong. The exit code."""
    try:
        chain = Chain.of(options.via) if options.via else configured()
        if chain is None:
            print(f"{name}: no proxy: --via URL, ALGATE_PROXY or ALL_PROXY names one", file=sys.stderr)
            return EXIT_USAGE
        return body(options, with_passwords(chain))
    except ProxySyntaxError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ProxyError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
    except EOFError as error:
        print(f"{name}: {error or 'the input has ended'}", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return EXIT_FAILED


def with_passwords(chain: Chain) -> Chain:
    """Return the chain with the passwords that its URLs leave out; they are asked for at the terminal, if there is
    one."""
    if not sys.stdin.isatty() or not any(_is_asked(proxy) for proxy in chain.proxies):
        return chain
    from getpass import getpass  # it takes long to load

    asked = (
        proxy._replace(password=getpass(f"Password for {proxy}: ")) if _is_asked(proxy) else proxy
        for proxy in chain.proxies
    )
    return Chain(tuple(asked))


def _is_asked(proxy: Proxy) -> bool:
    """Whether a proxy needs a password that its URL leaves out."""
    return bool(proxy.user and not proxy.password and not proxy.gssapi and not proxy.kind.startswith("socks4"))


def host_and_port(text: str, default: int) -> tuple[str, int]:
    """Read HOST, HOST:PORT or [IPV6]:PORT. Raises ValueError if the port is not a number from 1 to 65535."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if not port:
        return host, default
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text}: {port} is no port")
    return host, int(port)


def printable(data: bytes) -> str:
    """Text of a server, without what would steer the terminal (RFC 1288 section 3.3)."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    return "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)


def command_line(arguments: Sequence[str] | None) -> Sequence[str]:
    return sys.argv[1:] if arguments is None else arguments

"""`algate finger`, `rfinger`: asks a host for its users (RFC 1288)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gateway.client.blocking import connect
from gateway.client.programs.common import command_line, host_and_port, parser, printable, run
from gateway.client.proxy import Chain

PORT = 79
MOST = 1024 * 1024  # bytes of an answer that are read


def query(user: str, long: bool = False) -> bytes:
    """Return the line that asks for a user; "": for all users. Raises ValueError if it would be more than one line."""
    if any(character < " " for character in user):
        raise ValueError(f"{user!r} has a control character in it")
    words = ["/W"] if long else []
    return " ".join([*words, *([user] if user else [])]).encode() + b"\r\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The exit code."""
    options = parser("Ask a host who is there, through a proxy.")
    options.add_argument("-l", dest="long", action="store_true", help="ask for more of each user")
    options.add_argument("target", metavar="[USER]@HOST[:PORT]", help="USER@A@B asks B to ask A")
    return run(options.parse_args(command_line(arguments)), _ask, "finger")


def _ask(options: argparse.Namespace, chain: Chain) -> int:
    user, at, where = options.target.rpartition("@")
    if not at or not where:
        raise ValueError(f"{options.target} is not [USER]@HOST")
    host, port = host_and_port(where, PORT)
    with connect(chain, host, port, options.timeout) as sock:
        sock.settimeout(options.timeout)
        sock.sendall(query(user, options.long))
        came = 0
        while came < MOST and (data := sock.recv(65536)):
            came += len(data)
            sys.stdout.write(printable(data))
    sys.stdout.flush()
    return 0


def script() -> None:
    """Entry point of `rfinger`."""
    sys.exit(main())

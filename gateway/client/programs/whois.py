"""`algate whois`, `rwhois`: whose is it (RFC 3912)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from gateway.client.blocking import connect
from gateway.client.programs.common import command_line, host_and_port, parser, printable, run
from gateway.client.proxy import Chain

PORT = 43
FIRST = "whois.iana.org"
MOST = 1024 * 1024  # bytes of an answer that are read

# What servers call the one that knows more: IANA; ARIN; registries of names (ICANN's agreement of 2013).
_REFERRAL = re.compile(
    rb"^[ \t]*(?:refer|whois|ReferralServer|Registrar WHOIS Server|Whois Server):[ \t]*(\S+)[ \t]*\r?$",
    re.MULTILINE | re.IGNORECASE,
)


def referral(answer: bytes) -> tuple[str, int] | None:
    """Return the host and port of the server that an answer names for further questions; None if it names none."""
    for found in _REFERRAL.findall(answer):
        text = found.decode("ascii", "replace").lower()
        scheme, mark, rest = text.rpartition("://")
        if mark and scheme not in ("whois", "rwhois"):
            continue
        try:
            host, port = host_and_port(rest.rstrip("/"), 4321 if scheme == "rwhois" else PORT)
        except ValueError:
            continue
        if re.fullmatch(r"[a-z0-9._:-]+", host):
            return host, port
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The exit code."""
    options = parser("Ask whose a name, an address or a number is, through a proxy.")
    options.add_argument("--server", "-s", metavar="HOST[:PORT]", help=f"ask this server ({FIRST}), and no other")
    options.add_argument("words", nargs="+", metavar="WORD")
    return run(options.parse_args(command_line(arguments)), _ask, "whois")


def _ask(options: argparse.Namespace, chain: Chain) -> int:
    question = " ".join(options.words)
    if any(character < " " for character in question):
        raise ValueError("the question has a control character in it")
    host, port = host_and_port(options.server or FIRST, PORT)
    answer = _query(chain, host, port, question, options.timeout)
    further = None if options.server else referral(answer)
    if further is not None and further != (host, port):
        print(f"% {host} refers to {further[0]}")
        answer = _query(chain, *further, question, options.timeout)
    sys.stdout.write(printable(answer))
    sys.stdout.flush()
    return 0


def _query(chain: Chain, host: str, port: int, question: str, timeout: float) -> bytes:
    answer = bytearray()
    with connect(chain, host, port, timeout) as sock:
        sock.settimeout(timeout)
        sock.sendall(question.encode() + b"\r\n")
        while len(answer) < MOST and (data := sock.recv(65536)):
            answer += data
    return bytes(answer)


def script() -> None:
    """Entry point of `rwhois`."""
    sys.exit(main())

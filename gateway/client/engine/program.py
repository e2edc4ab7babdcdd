"""`algate exec`: run a program whose whole network is the proxies."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
from collections.abc import Sequence

from gateway.client.engine.carry import Carrier
from gateway.client.engine.names import Names
from gateway.client.engine.namespace import Namespace, NoNamespace
from gateway.client.programs.common import EXIT_USAGE, command_line, parser, run
from gateway.client.proxy import Chain

TIMEOUT = 30.0
NOT_COVERED = (
    "the localhost inside is the program's own; nobody outside can connect to the program (active FTP, servers); "
    "ping and other protocols without ports go nowhere"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The program's exit code; 2 where it could not be started as asked."""
    options = parser("exec", "Run a program whose whole network goes through a proxy.")
    options.add_argument("--engine", choices=("auto", "namespace"), default="auto")
    options.add_argument("--dns", default="auto", metavar="auto|resolve|fake|tcp:SERVER|off")
    options.add_argument("--direct", action="append", default=[], metavar="NETWORK")
    options.add_argument("--strict", action="store_true")
    options.add_argument("--quiet", "-q", action="store_true")
    options.add_argument("--trace", action="store_true")
    options.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    options.set_defaults(timeout=TIMEOUT)
    return run(options.parse_args(command_line(arguments)), _execute, "algate exec")


def _execute(options: argparse.Namespace, chain: Chain) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        return _usage("there is no command: algate exec [OPTIONS] -- COMMAND ...")
    if options.dns not in ("auto", "resolve", "fake", "off") and not options.dns.startswith("tcp:"):
        return _usage(f"--dns {options.dns}: is none of auto, resolve, fake, tcp:SERVER, off")
    try:
        direct = [ipaddress.ip_network(text) for text in options.direct]
    except ValueError as error:
        return _usage(f"--direct: {error}")
    try:
        space = Namespace(command)
    except NoNamespace as error:
        return _usage(
            f"no namespace: {error}. It needs unprivileged user namespaces (sysctl user.max_user_namespaces, "
            "kernel.apparmor_restrict_unprivileged_userns) and nft with tproxy"
        )
    if not options.quiet and sys.stderr.isatty():
        print(f"algate exec: through {chain}. Not covered: {NOT_COVERED}.", file=sys.stderr)
    names = Names(chain, options.dns, options.timeout)
    if options.dns == "off":
        space.sockets.names.close()
    Carrier(space, chain, names, direct, options.timeout, options.trace).start()
    for number in (signal.SIGINT, signal.SIGQUIT):  # from the terminal they come to the program too
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda got, _frame: space.signal(got))
    space.begin()
    code = space.wait()
    sys.stderr.flush()
    os._exit(code)  # threads that wait for a proxy are not waited for


def _usage(text: str) -> int:
    print(f"algate exec: {text}", file=sys.stderr)
    return EXIT_USAGE


def script() -> None:
    """Entry point of `algate-exec`."""
    sys.exit(main())

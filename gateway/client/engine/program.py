"""`algate exec`: runs a program that reaches the network only through proxies."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

from gateway.client.engine.messages import Messages, say, thread
from gateway.client.engine.names import Names
from gateway.client.engine.outcome import NoEngine, Started
from gateway.client.programs.common import EXIT_USAGE, command_line, parser, run
from gateway.client.proxy import Chain

# What only one engine, or one option, needs is imported where it is used: imports are most of the time until the
# program begins.
Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
Serve = Callable[[Chain, Names, Networks, float, Messages], None]  # begins to serve what the program will ask for

TIMEOUT = 30.0
ENGINES = ("auto", "namespace", "seccomp")
PUBLISHED = "[PEER:|PUBLIC:]PORT"
# What each option does, in the help of `algate exec` too.
HELP = {
    "engine": "How the program's connections get to the proxy: through a network namespace, or by notifications of "
    "seccomp; auto is the first of them that this host allows.",
    "dns": "How names are resolved. resolve: the proxy is asked for addresses; fake: the proxy is given the names, "
    "and the program gets made-up addresses; tcp:SERVER: a name server is asked through the proxy; off: "
    "not at all; auto: resolve where the proxy can do that, else fake.",
    "direct": "A network whose hosts are reached without the proxy.",
    "publish": "Let hosts outside reach a port at which the program listens (BIND). PEER is the only host that may "
    "connect. The proxy chooses the public port; if it is not PUBLIC, a message says so.",
    "strict": "Fail if the program could reach a part of the network without the proxy.",
    "trace": "Print a line for each connection, and for each edit of a module.",
    "quiet": "Do not say which engine is used, and what it does not cover.",
}
NOT_COVERED = {
    "namespace": "the localhost inside is the program's own; nobody outside can connect to the program but for "
    "--publish and FTP in active mode; ping and other protocols without ports go nowhere",
    "seccomp": "datagrams go from connected sockets only; what the program serves, it serves on this "
    "host; programs that go to the background lose their way when the first one ends; a program that sets out to get "
    "past this can",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The program's exit code; 2 where it could not be started as asked."""
    options = parser("Run a program whose whole network goes through a proxy.")
    options.add_argument("--engine", choices=ENGINES, default="auto", help=HELP["engine"])
    options.add_argument("--dns", default="auto", metavar="MODE", help=HELP["dns"])
    options.add_argument("--direct", action="append", default=[], metavar="NETWORK", help=HELP["direct"])
    options.add_argument("--publish", action="append", default=[], metavar=PUBLISHED, help=HELP["publish"])
    options.add_argument("--strict", action="store_true", help=HELP["strict"])
    options.add_argument("--quiet", "-q", action="store_true", help=HELP["quiet"])
    options.add_argument("--trace", action="store_true", help=HELP["trace"])
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
        publish = _published(options, chain)
    except ValueError as error:
        return _usage(f"--publish {error}")
    try:
        said, program, serve = _engine(options, command)
    except NoEngine as error:
        return _usage(str(error))
    _take_descriptors()
    messages = Messages(options.trace)
    names = Names(chain, options.dns, options.timeout, messages.once)
    serve(chain, names, direct, options.timeout, messages)
    if not options.quiet:
        say(f"through {chain}, {said}.")
    for number in (signal.SIGINT, signal.SIGQUIT):  # from the terminal they come to the program too
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda got, _frame: program.signal(got))
    publish(program)
    program.begin()
    code = program.wait()
    sys.stderr.flush()
    os._exit(code)  # threads that wait for a proxy are not waited for


def _take_descriptors() -> None:
    """Use as many descriptors as we may: each connection takes up to six. The program has its own limit already."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _published(options: argparse.Namespace, chain: Chain) -> Callable[[Started], None]:
    """Read what is to be published. Returns what publishes it, once there is a program. Raises ValueError."""
    if not options.publish:
        return lambda program: None
    from gateway.client.engine.publish import parse_published, publish

    ports = [parse_published(text) for text in options.publish]

    def begin(program: Started) -> None:
        for published in ports:
            thread(publish, published, chain, program.inward, options.timeout)

    return begin


def _engine(options: argparse.Namespace, command: Sequence[str]) -> tuple[str, Started, Serve]:
    """Start the program by the engine that was asked for: by default in a namespace, and where none can be made by
    notification. Returns what is said of the engine, the program, and what serves it. Raises NoEngine."""
    if options.engine == "seccomp":
        return _by("seccomp"), *_supervised(options, command, "")
    try:
        return _by("namespace"), *_in_namespace(command)
    except NoEngine as error:
        why = (
            f"no namespace: {error}. It needs unprivileged user namespaces (sysctl user.max_user_namespaces, "
            "kernel.apparmor_restrict_unprivileged_userns) and nft with tproxy"
        )
        if options.engine == "namespace":
            raise NoEngine(why) from None
        return f"no namespace ({error}): {_by('seccomp')}", *_supervised(options, command, f"{why}; ")


def _by(engine: str) -> str:
    return f"by {engine}. Not covered: {NOT_COVERED[engine]}"


def _in_namespace(command: Sequence[str]) -> tuple[Started, Serve]:
    from gateway.client.engine.carry import ProgramCarrier
    from gateway.client.engine.namespace import Namespace

    space = Namespace(command)
    return space, lambda *how: ProgramCarrier(space, *how).start()


def _supervised(options: argparse.Namespace, command: Sequence[str], why: str) -> tuple[Started, Serve]:
    if options.strict:
        raise NoEngine(f"{why}--strict: seccomp does not cover all ({NOT_COVERED['seccomp']})")
    if options.dns == "off":
        raise NoEngine(f"{why}--dns off is for the namespace only")
    from gateway.client.engine.supervised import Program, Watcher

    try:
        program = Program(command)
    except NoEngine as error:
        raise NoEngine(f"{why}no supervision: {error} (it needs Linux 5.9 on x86-64 or arm64)") from None
    return program, lambda *how: Watcher(program, *how).start()


def _usage(text: str) -> int:
    say(text)
    return EXIT_USAGE


def script() -> None:
    """Entry point of `algate-exec`."""
    sys.exit(main())

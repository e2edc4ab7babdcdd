"""`algate explain FILE.pcap` and `algate trace`: what is changed in each message, and why."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import click
from rich.text import Text

from alg.registry import datagram_modules, modules
from gateway.cli.diff import clock, render
from gateway.cli.live import collect
from gateway.cli.options import config_option, json_option
from gateway.cli.output import console, show_json
from gateway.config.load import load_config
from gateway.config.schema import parse_endpoint
from gateway.driver.capture import Piece, Writer, read
from gateway.model.errors import AlgateError
from gateway.model.requests import Network
from gateway.observe.trace import Row
from gateway.process.installed import datagram_readers, stream_readers

POLL = 0.25  # seconds
# Who is inside if the configuration does not say: private addresses.
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
_EXAMPLE = "192.0.2.1"
_TRANSPORTS: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")


client_option = click.option("--client", metavar="ADDRESS", help="Only messages from and to this inside host.")
ladder_option = click.option(
    "--call", "ladder", metavar="ID", help="Only messages of the call with this id, as `algate calls` shows it."
)
write_option = click.option(
    "--write", "into", metavar="FILE.pcap", type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the messages into a capture file: as they came, or with --after as they were sent on.",
)  # fmt: skip
after_option = click.option("--after", is_flag=True, help="With --write: write messages as they were sent on.")


@click.command()
@config_option
@json_option
@click.option(
    "--public", metavar="ADDRESS", help=f"The router's public address (default: network.outside, or {_EXAMPLE})."
)
@client_option
@ladder_option
@write_option
@after_option
@click.argument("capture", metavar="FILE.pcap", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def explain(
    config_path: str | None,
    as_json: bool,
    public: str | None,
    client: str | None,
    ladder: str | None,
    into: Path | None,
    after: bool,
    capture: Path,
) -> None:
    """Show what modules would change in a capture.

    The capture (pcap or pcapng, also compressed by gzip) must be of the inside interface. Nothing is sent or opened.

    \b
    Examples:
      algate explain call.pcap
      algate explain --public 203.0.113.2 --json call.pcap.gz
      algate explain --client 192.168.56.10 --write edited.pcap --after call.pcap
    """
    config = load_config(config_path)
    if public is None:
        public = config.network.outside if config.network.outside != "auto" else _EXAMPLE
    _address("--public", public)
    inside: tuple[Network, ...] = config.inside_networks or tuple(map(ipaddress.ip_network, _PRIVATE))
    from gateway.driver.offline import Rehearsal  # it loads gevent, which no other command needs

    streams, datagrams = stream_readers(config, modules()), datagram_readers(config, datagram_modules())
    rehearsal = Rehearsal(streams, datagrams, config.pinhole_ports[0], inside, public)
    wanted = _Filter(client, ladder)
    with _writing(into, after) as write:
        rows = map(write, filter(wanted, rehearsal.run(read(capture))))
        if as_json:
            show_json(list(rows))
        else:
            _print(rows)
    if not rehearsal.read:
        ports = ", ".join(f"{port}/{transport}" for transport in _TRANSPORTS for port in config.module_ports(transport))
        click.echo(
            f"{capture}: no module reads any of it: of {rehearsal.pieces} datagrams and pieces of streams none is"
            f" between inside and outside at a port of a module ({ports})",
            err=True,
        )


@click.command()
@config_option
@json_option
@client_option
@ladder_option
@write_option
@after_option
def trace(
    config_path: str | None, as_json: bool, client: str | None, ladder: str | None, into: Path | None, after: bool
) -> None:
    """Show messages as they pass, and their edits.

    Shows messages that modules read, over UDP and TCP, until interrupted. Passwords are left out, and so is what
    people write to each other; the page of each module says what it shows. With --json the messages that passed
    most recently are printed once.

    \b
    Examples:
      algate trace
      algate trace --client 192.168.56.10 --write phone.pcap
      algate trace --json
    """
    wanted = _Filter(client, ladder)
    with _writing(into, after) as write:
        if as_json:
            show_json([write(row) for row in collect(config_path, "trace") if wanted(row)])
            return
        with suppress(KeyboardInterrupt):
            _follow(config_path, wanted, write)


def _follow(config_path: str | None, wanted: Callable[[Row], bool], write: Callable[[Row], Row]) -> None:
    """Print messages as they come, until interrupted."""
    seen: dict[str, int] | None = None  # the latest message of each process
    while True:
        rows = collect(config_path, "trace")
        last: dict[str, int] = {}
        for row in rows:
            last[row["process"]] = max(last.get(row["process"], 0), row["number"])
        if seen is not None:
            new, missed = _unseen(rows, seen, last)
            if missed:
                click.echo(f"({missed} messages passed unseen)")
            _print(map(write, filter(wanted, new)))
        seen = last
        time.sleep(POLL)


class _Filter:
    """Decides whether a row is shown: by the inside host and the call that were asked for. A row that is no message is
    always shown."""

    def __init__(self, client: str | None, ladder: str | None) -> None:
        self._client = _address("--client", client) if client is not None else None
        self._ladder = ladder

    def __call__(self, row: Row) -> bool:
        if "event" in row:
            return self._ladder is None and (self._client is None or self._client in str(row["detail"]))
        if self._ladder is not None and self._ladder not in (row.get("ladder"), row.get("flow")):
            return False
        ends = (str(row["source"]), str(row["destination"]))
        return self._client is None or any(end.rpartition(":")[0].strip("[]") == self._client for end in ends)


@contextmanager
def _writing(path: Path | None, after: bool) -> Iterator[Callable[[Row], Row]]:
    """Return a function that every shown row is passed to. With a path it writes each message into a capture file
    there."""
    if path is None:
        if after:
            raise click.UsageError("--after needs --write")
        yield lambda row: row
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise AlgateError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        writer = Writer(file)

        def write(row: Row) -> Row:
            if "event" not in row:
                text = row["after"] if after and row["after"] is not None else row["data"]
                ends = (parse_endpoint(row["source"]), parse_endpoint(row["destination"]))
                writer.write(Piece(row["transport"], row["time"], *ends, text.encode("latin-1")))
            return row

        yield write


def _address(option: str, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise click.UsageError(f"{option}: {text!r} is not an address") from None


def _unseen(rows: Iterable[Row], seen: Mapping[str, int], last: Mapping[str, int]) -> tuple[list[Row], int]:
    """Return the rows that were not seen before, in the order of time, and how many messages are missing because the
    ring was overwritten."""
    new: list[Row] = []
    missed = 0
    for process in last:
        before = seen.get(process, 0)
        if last[process] < before:  # another process has taken its place
            before = 0
        of_it = [row for row in rows if row["process"] == process and row["number"] > before]
        missed += last[process] - before - len(of_it)
        new += of_it
    return sorted(new, key=lambda row: float(row["time"])), missed


def _print(rows: Iterable[Row]) -> None:
    out = console()
    for row in rows:
        if "event" in row:
            head = f"{clock(row['time'])} * {row['event']} "
            out.print(Text.assemble((head, "bold yellow"), row["detail"]), soft_wrap=True)
        else:
            for line in render(row):
                out.print(line, soft_wrap=True)

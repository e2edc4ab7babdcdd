"""The endpoints that FTP lines name: read, checked against the flow, and rewritten."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import (
    Address,
    Endpoint,
    canonical,
    find_epsv_port,
    find_pasv_endpoint,
    format_eprt_argument,
    format_port_argument,
    parse_eprt_argument,
    parse_port_argument,
)
from alg.api import Edit
from alg.ftp.commands import FtpCommand

LOWEST_PORT = 1024


class Wrong(Exception):
    """An endpoint that earns no pinhole; `rule` ("ftp.address") says why."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


class Foreign(Wrong):
    """A server names a host that is not itself: more often a wrong configuration than an attack."""


@dataclass(frozen=True, slots=True)
class Advert:
    """PORT or EPRT of a client: where it listens. `delimiter` is that of EPRT, empty for PORT."""

    command: FtpCommand
    target: Endpoint
    delimiter: bytes

    @property
    def reason(self) -> str:
        return f"ftp.{self.command.verb.lower()}"

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """The edit of the argument, and of nothing else, that advertises `public` instead; none where it is the same.

        ValueError where the command cannot express `public`.
        """
        public = Endpoint.of(canonical(public.host), public.port)
        if public == self.target:
            return ()
        text = format_eprt_argument(public, self.delimiter) if self.delimiter else format_port_argument(public)
        return (Edit(self.command.start, self.command.end, text, self.reason),)


class Other(Wrong):
    """A client names a third host: a bounce, or a transfer between two servers (FXP)."""

    def __init__(self, advert: Advert, client: Address) -> None:
        super().__init__("ftp.address", f"{advert.command.verb} names {advert.target} instead of {client}")
        self.advert = advert


def read_advert(command: FtpCommand, client: Address) -> Advert:
    """Read PORT or EPRT of `client`, the flow's own client. Raises Wrong; Other if only the host is wrong."""
    delimiter = b""
    try:
        if command.verb == "PORT":
            target = parse_port_argument(command.argument)
        else:
            extended = parse_eprt_argument(command.argument)
            target, delimiter = extended.endpoint, extended.delimiter
    except ValueError as error:
        raise Wrong("ftp.syntax", f"{command.verb}: {error}") from error
    if delimiter and target.version != client.version:
        raise Wrong("ftp.family", f"EPRT names {target}, the client is {client}")
    advert = Advert(command, target, delimiter)
    if target.ip != client and target.version == client.version and target.port >= LOWEST_PORT:
        raise Other(advert, client)
    _check(command.verb, target, client)
    return advert


@dataclass(frozen=True, slots=True)
class Passive:
    """A 227 or 229 reply of a server: where it listens (`target`, at its own address), and the `written` endpoint,
    which is `line[start:end]`; of a 229 that is the port alone."""

    target: Endpoint
    written: Endpoint
    start: int
    end: int
    extended: bool

    @property
    def reason(self) -> str:
        return "ftp.epsv" if self.extended else "ftp.pasv"

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """The edit that names `public` instead, and of nothing else; none where it says so already.

        ValueError where the reply cannot express `public`.
        """
        public = Endpoint.of(canonical(public.host), public.port)
        if self.extended:
            same = public.port == self.written.port
            return () if same else (Edit(self.start, self.end, b"%d" % public.port, self.reason),)
        if public == self.written:
            return ()
        return (Edit(self.start, self.end, format_port_argument(public), self.reason),)


def read_pasv_reply(line: bytes, server: Address, correct: bool) -> Passive:
    """Read the final line of a 227 reply of `server`, the flow's own server. Raises Wrong.

    `correct`: whether a reply that names another address means the server all the same; else that is Foreign.
    """
    try:
        found = find_pasv_endpoint(line)
    except ValueError as error:
        raise Wrong("ftp.syntax", f"reply 227: {error}") from error
    if found.endpoint.ip != server and not correct:
        raise Foreign("ftp.address", f"reply 227 names {found.endpoint} instead of {server}")
    target = Endpoint.of(server, found.endpoint.port)
    _check("reply 227", target, server)
    return Passive(target, found.endpoint, found.start, found.end, extended=False)


def read_epsv_reply(line: bytes, server: Address) -> Passive:
    """Read the final line of a 229 reply of `server`, the flow's own server. Raises Wrong."""
    try:
        found = find_epsv_port(line)
    except ValueError as error:
        raise Wrong("ftp.syntax", f"reply 229: {error}") from error
    target = Endpoint.of(server, found.port)
    _check("reply 229", target, server)
    return Passive(target, target, found.start, found.end, extended=True)


def _check(what: str, endpoint: Endpoint, own: Address) -> None:
    if endpoint.ip != own:
        raise Wrong("ftp.address", f"{what} names {endpoint} instead of {own}")
    if endpoint.port < LOWEST_PORT:
        raise Wrong("ftp.low-port", f"{what} names {endpoint}")

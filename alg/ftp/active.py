"""Active mode: reads PORT and EPRT, checks the endpoint against the flow, and rewrites it."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Address, Endpoint, canonical
from alg.api import Edit
from alg.ftp.addresses import (
    format_eprt_argument,
    format_port_argument,
    parse_eprt_argument,
    parse_port_argument,
)
from alg.ftp.commands import FtpCommand
from alg.ftp.strategy import WrongLine

LOWEST_PORT = 1024


@dataclass(frozen=True, slots=True)
class Advert:
    """A client's PORT or EPRT: the endpoint at which it listens. `delimiter` is that of EPRT, empty for PORT."""

    command: FtpCommand
    target: Endpoint
    delimiter: bytes

    @property
    def reason(self) -> str:
        return f"ftp.{self.command.verb.lower()}"

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """Return the edit of the argument, and of nothing else, that advertises `public` instead; none if it is the
        same.

        Raises ValueError if the command cannot express `public`.
        """
        public = Endpoint.of(canonical(public.host), public.port)
        if public == self.target:
            return ()
        text = format_eprt_argument(public, self.delimiter) if self.delimiter else format_port_argument(public)
        return (Edit(self.command.start, self.command.end, text, self.reason),)


class Other(WrongLine):
    """A client names a third host, for a bounce attack or for a transfer between two servers (FXP)."""

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
        raise WrongLine("ftp.syntax", f"{command.verb}: {error}") from error
    if delimiter and target.version != client.version:
        raise WrongLine("ftp.family", f"EPRT names {target}, the client is {client}")
    advert = Advert(command, target, delimiter)
    if target.ip != client and target.version == client.version and target.port >= LOWEST_PORT:
        raise Other(advert, client)
    if target.ip != client:
        raise WrongLine("ftp.address", f"{command.verb} names {target} instead of {client}")
    if target.port < LOWEST_PORT:
        raise WrongLine("ftp.low-port", f"{command.verb} names {target}")
    return advert

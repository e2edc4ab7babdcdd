"""Between active and passive mode (`[alg.ftp] convert`): what is said to a side instead of what the other one said.

Here alone the gateway makes commands and replies of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint, format_port_argument
from alg.api import Edit
from alg.ftp.commands import FtpCommand
from alg.ftp.endpoints import Advert

REASON = "ftp.convert"
# Commands that use the data connection (RFC 959, 5.4; RFC 3659).
TRANSFERS = frozenset({"RETR", "STOR", "STOU", "APPE", "LIST", "NLST", "MLSD"})


@dataclass(slots=True)
class DataRelay:
    """A PORT or EPRT that the server got as PASV or EPSV: the gateway connects to both sides once `server`, the
    endpoint of its reply, is known and the transfer has `begun` (a client may not listen any longer than that)."""

    advert: Advert
    verb: str  # PASV or EPSV
    server: Endpoint | None = None
    begun: bool = False

    @property
    def request(self) -> tuple[Edit, ...]:
        """The edit of the client's line, after what Telnet may have put before it."""
        command = self.advert.command
        return (Edit(command.start - len(command.verb) - 1, command.end, self.verb.encode(), REASON),)

    def answer(self, line: bytes) -> tuple[Edit, ...]:
        """The edit of the server's 227 or 229 to the reply that the client expects."""
        return (Edit(0, len(line), f"200 {self.advert.command.verb} command successful.\r\n".encode(), REASON),)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A PASV of a client that the server gets as PORT. `target` is the client, at no port in particular."""

    command: FtpCommand
    target: Endpoint

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """PORT, naming `public`. ValueError where it cannot."""
        text = b"PORT " + format_port_argument(public)
        return (Edit(self.command.end - len(self.command.verb), self.command.end, text, REASON),)


@dataclass(frozen=True, slots=True)
class Translated:
    """The 227 of a server behind NAT64, of `length` bytes, that its client has to read as a 229 (RFC 6384, 5). `target`
    is where the client finds it."""

    target: Endpoint
    length: int

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """229, naming the port of `public`."""
        text = b"229 Entering Extended Passive Mode (|||%d|).\r\n" % public.port
        return (Edit(0, self.length, text, REASON),)


def passive_reply(line: bytes, inner: Endpoint) -> tuple[Edit, ...]:
    """The edit of the server's reply to PORT to a 227 that names `inner`, of IPv4."""
    text = b"227 Entering Passive Mode (%s).\r\n" % format_port_argument(inner)
    return (Edit(0, len(line), text, REASON),)

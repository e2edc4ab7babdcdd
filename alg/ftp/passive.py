"""Passive mode: reads 227 and 229 replies, checks the endpoint against the flow, and rewrites it."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint, canonical
from alg.api import Edit
from alg.ftp.active import LOWEST_PORT
from alg.ftp.addresses import find_epsv_port, find_pasv_endpoint, format_port_argument
from alg.ftp.strategy import Talk, Unclear, WrongLine


@dataclass(frozen=True, slots=True)
class Passive:
    """A server's 227 or 229 reply: where it listens (`target`, at its own address), and the `written` endpoint, which
    is `line[start:end]`; of a 229 that is the port alone. `keep`: the reply goes out as it is in any case."""

    target: Endpoint
    written: Endpoint
    start: int
    end: int
    extended: bool
    keep: bool = False

    @property
    def reason(self) -> str:
        return "ftp.epsv" if self.extended else "ftp.pasv"

    @property
    def is_foreign(self) -> bool:
        """Whether the reply names another host than the server."""
        return self.written.host != self.target.host

    def edits(self, public: Endpoint) -> tuple[Edit, ...]:
        """Return the edit that names `public` instead, and changes nothing else; none if it says so already.

        Raises ValueError if the reply cannot express `public`.
        """
        public = Endpoint.of(canonical(public.host), public.port)
        if self.keep:
            return ()
        if self.extended:
            same = public.port == self.written.port
            return () if same else (Edit(self.start, self.end, b"%d" % public.port, self.reason),)
        if public == self.written:
            return ()
        return (Edit(self.start, self.end, format_port_argument(public), self.reason),)


def read_passive(talk: Talk, code: int, line: bytes) -> Passive:
    """Read a 227 or 229 reply of the flow's own server, of which this is the last line. The code decides, not what was
    asked. Raises Unclear, and Wrong for a port below 1024.

    Whatever address a 227 names, the server's own is meant. A server that is not configured with its public address
    names a private one, one that uses IPv6 names 0.0.0.0, and most clients connect to the host to which they are
    connected already. Only the port counts. `pasv_address` says whether the address is corrected; the unspecified
    address of a published server always is, because no client could use it.
    """
    try:
        target, written, start, end = _find(code, line, talk)
        earlier = False
    except ValueError as error:
        # It may stand in an earlier line of the reply. That has gone out already, so it cannot be rewritten any more.
        try:
            if talk.published:
                raise error
            target, written, start, end = _find(code, talk.replies.text, talk)
            earlier = True
        except ValueError:
            raise Unclear("ftp.syntax", f"reply {code}: {error}") from error
    if target.port < LOWEST_PORT:
        raise WrongLine("ftp.low-port", f"reply {code} names {target}")
    foreign = written.host != target.host
    correct = talk.options.pasv_address == "peer" or (talk.published and written.ip.is_unspecified)
    if foreign and talk.published and not correct:
        raise Unclear("ftp.address", f"reply 227 names {written} instead of {talk.server}")
    return Passive(target, written, start, end, code == 229, keep=earlier or (foreign and not correct))


def _find(code: int, text: bytes, talk: Talk) -> tuple[Endpoint, Endpoint, int, int]:
    if code == 229:
        port = find_epsv_port(text)
        target = Endpoint.of(talk.server, port.port)
        return target, target, port.start, port.end
    found = find_pasv_endpoint(text)
    return Endpoint.of(talk.server, found.endpoint.port), found.endpoint, found.start, found.end

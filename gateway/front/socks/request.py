"""A SOCKS request that has been read, and the ways to answer it, for versions 4, 4a and 5 alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import gevent.socket as gsocket
import msgspec
import structlog

from alg.address import Endpoint
from alg.socks import http, socks4, socks5
from gateway.flow.dial import DialError, DialFailure
from gateway.model.requests import CommandName, ConnectRequest
from gateway.net.sockets import close_gently

log = structlog.get_logger()

T = TypeVar("T")

READ_SIZE = 4096
GOODBYE = 2.0  # seconds for a refused client to read the reply and close (RFC 1928 section 6 allows 10)

_REPLIES: dict[DialFailure, socks5.Reply] = {
    "denied": socks5.Reply.NOT_ALLOWED,
    "name": socks5.Reply.HOST_UNREACHABLE,
    "refused": socks5.Reply.CONNECTION_REFUSED,
    "network": socks5.Reply.NETWORK_UNREACHABLE,
    "host": socks5.Reply.HOST_UNREACHABLE,
    "timeout": socks5.Reply.TTL_EXPIRED,
    "failed": socks5.Reply.GENERAL_FAILURE,
}


HTTP = 1
"""The version of a request that came as HTTP CONNECT."""

_STATUS: dict[DialFailure, int] = {
    "denied": 403,
    "name": 502,
    "refused": 502,
    "network": 502,
    "host": 502,
    "timeout": 504,
    "failed": 502,
}


class Protection(Protocol):
    """The per-message protection that was negotiated with the client (RFC 1961 section 5), for datagrams."""

    def wrap(self, data: bytes) -> bytes:
        """Encapsulate a datagram for the client."""
        ...

    def unwrap(self, datagram: bytes) -> bytes:
        """Return the contents of a client's datagram. Raises ValueError if it is not from the client or was changed;
        then drop it."""
        ...


class Identity(msgspec.Struct, frozen=True):
    """The identity of a client: the result of its authentication. `protection` is None except after GSSAPI with
    protection."""

    user: str | None = None
    groups: tuple[str, ...] = ()
    protection: Protection | None = None


ANONYMOUS = Identity()


class ClientGone(Exception):
    """The client closed in the middle of its handshake."""


class Incoming:
    """A client's socket, and the bytes that have come from it and are not consumed yet."""

    def __init__(self, sock: gsocket.socket, proved: Identity | None = None) -> None:
        """`proved`: the client's identity, if the connection itself has proved it (by a certificate)."""
        self.sock = sock
        self.proved = proved
        self.local: tuple[object, ...] = sock.getsockname()  # of the client's own connection, whatever is laid over it
        self.buffer = bytearray()

    def read(self, parse: Callable[[bytes | bytearray], tuple[T, int] | None]) -> T:
        """Receive until `parse` has a message. The bytes behind it stay in the buffer, because they are for the server.
        Raises Gone, OSError, and what `parse` raises."""
        while (result := parse(self.buffer)) is None:
            self._receive()
        message, used = result
        del self.buffer[:used]
        return message

    def peek(self) -> int:
        """Return the first byte, without consuming it."""
        while not self.buffer:
            self._receive()
        return self.buffer[0]

    def _receive(self) -> None:
        data = self.sock.recv(READ_SIZE)
        if not data:
            raise ClientGone
        self.buffer += data


class SocksRequest:
    """A client's request. `version` is 4 or 5; `identity` is the result of its authentication.

    `reverse`: the command "resolve" asks for the name of an address. `sock` carries the client's bytes in clear: a
    protection of the stream is done within it.
    """

    def __init__(
        self,
        incoming: Incoming,
        version: int,
        command: CommandName,
        client: Endpoint,
        host: str,
        port: int,
        identity: Identity = ANONYMOUS,
        reverse: bool = False,
    ) -> None:
        self.incoming = incoming
        self.version = version
        self.command = command
        self.client = client
        self.host = host
        self.port = port
        self.identity = identity
        self.reverse = reverse

    @property
    def user(self) -> str | None:
        return self.identity.user

    @property
    def groups(self) -> tuple[str, ...]:
        return self.identity.groups

    @property
    def protection(self) -> Protection | None:
        """How datagrams of a UDP association are wrapped and unwrapped; None: not at all."""
        return self.identity.protection

    @property
    def sock(self) -> gsocket.socket:
        return self.incoming.sock

    def names(self) -> dict[str, str]:
        """Return the fields that name the request in each log line about it."""
        user = {"user": self.user} if self.user else {}
        return {"client": str(self.client), **user, "command": self.command, "target": f"{self.host}:{self.port}"}

    def connect_request(self) -> ConnectRequest:
        """Return the request in the form that policy and dialler use."""
        return ConnectRequest(self.command, self.client, self.host, self.port, self.user, self.groups)

    def grant(self, bound: Endpoint | str) -> None:
        """Send a success reply with a bound endpoint (a name for RESOLVE_PTR). Raises OSError if the client has
        gone."""
        if self.version == HTTP:
            self.sock.sendall(http.encode_answer(200))
        elif self.version == socks5.VERSION or isinstance(bound, str):
            self.sock.sendall(socks5.encode_reply(socks5.Reply.SUCCEEDED, bound))
        else:
            self.sock.sendall(socks4.encode_reply(socks4.Reply.GRANTED, bound))

    def fail(self, error: DialError) -> None:
        """Tell the log and the client that the request is not carried out, and close."""
        log_failure(self, error)
        self.refuse(error.failure)

    def refuse(self, failure: DialFailure) -> None:
        """Send the reply for a failure, and close."""
        if self.version == HTTP:
            refuse(self.sock, HTTP, _STATUS[failure])
            return
        refuse(self.sock, self.version, _REPLIES[failure] if self.version == socks5.VERSION else socks4.Reply.REJECTED)


class Loggable(Protocol):
    """A request, or a datagram. `names` returns its fields for the log."""

    def names(self) -> dict[str, str]: ...


def log_failure(request: Loggable, error: DialError) -> None:
    """Log a request that is not carried out."""
    log.info(
        "socks.denied" if error.failure == "denied" else "socks.failed",
        **request.names(),
        failure=error.failure,
        rule=error.rule,
        detail=str(error),
    )


def refuse(sock: gsocket.socket, version: int, reply: int | None) -> None:
    """Send a failure reply of a version (None: there is none that the client would understand), and close."""
    try:
        sock.settimeout(GOODBYE)
        if reply is not None and version == HTTP:
            sock.sendall(http.encode_answer(reply))
        elif reply is not None and version == socks5.VERSION:
            sock.sendall(socks5.encode_reply(socks5.Reply(reply)))
        elif reply is not None:
            sock.sendall(socks4.encode_reply(socks4.Reply(reply)))
    except OSError:
        pass
    close_gently(sock, GOODBYE)

"""The SOCKS front: handshakes of versions 4, 4a and 5 over a socket; the wire formats are in socks4 and socks5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import gevent
import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from alg.socks import http, socks4, socks5
from alg.socks.socks5 import SocksError
from gateway.front.socks.authenticate import Authenticator, NotAuthenticated
from gateway.front.socks.request import ANONYMOUS, GOODBYE, HTTP, ClientGone, Incoming, SocksRequest, refuse
from gateway.front.socks.rule_ident import RuleIdent
from gateway.model.hosts import read_host
from gateway.model.requests import CommandName, ProtocolName
from gateway.net.sockets import close_gently, endpoint

log = structlog.get_logger()

_COMMANDS4: dict[socks4.Command, CommandName] = {
    socks4.Command.CONNECT: "connect",
    socks4.Command.BIND: "bind",
    socks4.Command.RESOLVE: "resolve",
}
_COMMANDS5: dict[socks5.Command, CommandName] = {
    socks5.Command.CONNECT: "connect",
    socks5.Command.BIND: "bind",
    socks5.Command.UDP_ASSOCIATE: "udp",
    socks5.Command.RESOLVE: "resolve",
    socks5.Command.RESOLVE_PTR: "resolve",
}


_SOCKS: dict[int, ProtocolName] = {socks4.VERSION: "socks4", socks5.VERSION: "socks5"}


class SocksCommand(Protocol):
    """Carries out one of the commands; owns the request's socket."""

    def run(self, request: SocksRequest) -> None: ...


class SocksFront:
    """Serves SOCKS clients by `commands`, after `authenticator` has authenticated them. `timeout`: seconds for a whole
    handshake, however slowly its bytes come."""

    def __init__(
        self,
        commands: Mapping[CommandName, SocksCommand],
        authenticator: Authenticator,
        timeout: float,
        rule_ident: RuleIdent,
        protocols: Sequence[ProtocolName] = ("socks5", "socks4"),
    ) -> None:
        self._commands = commands
        self._authenticator = authenticator
        self._timeout = timeout
        self._rule_ident = rule_ident
        self._protocols = protocols
        self.serves_http = "http" in protocols

    def handle(self, sock: gsocket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        self.resume(sock, address, b"", False, self._timeout)

    def resume(
        self, sock: gsocket.socket, address: tuple[object, ...], received: bytes, chosen: bool, seconds: float
    ) -> None:
        """Continue a handshake of which `received` is not consumed yet and `seconds` are left; owns the socket.

        `chosen`: the greeting was answered already, with the method "none".
        """
        incoming = Incoming(sock)
        incoming.buffer += received
        self.serve(incoming, address, seconds, chosen)

    def serve(self, incoming: Incoming, address: tuple[object, ...], seconds: float, chosen: bool = False) -> None:
        """Like `resume`, for what has come in another way than as a plain socket."""
        client = endpoint(address)
        version = 0
        try:
            with gevent.Timeout(max(seconds, 0.01)):
                version = socks5.VERSION if chosen else self._version(incoming.peek())
                request = self._request(version, incoming, client, chosen)
                self._rule_ident.complete(request)
        except gevent.Timeout:
            self.log_timeout(client)
            incoming.sock.close()
        except (ClientGone, OSError):
            incoming.sock.close()
        except NotAuthenticated as refusal:
            _say_goodbye(incoming.sock, refusal.answer)
        except SocksError as error:
            log.info("socks.malformed", client=str(client), reason=str(error))
            refuse(incoming.sock, version, error.reply)
        else:
            self._commands[request.command].run(request)

    def log_timeout(self, client: Endpoint) -> None:
        """Log that a client's time for its handshake is over."""
        log.info("socks.timeout", client=str(client), seconds=self._timeout)

    def _version(self, first: int) -> int:
        """Return the version that a first byte begins. Raises SocksError if nothing of that kind is served."""
        if first in _SOCKS and _SOCKS[first] in self._protocols:
            return first
        if self.serves_http and first not in _SOCKS:
            return HTTP
        raise SocksError(None, f"a connection that begins with {first} is none of {', '.join(self._protocols)}")

    def _request(self, version: int, incoming: Incoming, client: Endpoint, chosen: bool) -> SocksRequest:
        if version == HTTP:
            return self._request_of_http(incoming, client)
        if version == socks4.VERSION:
            return self._request4(incoming, client)
        return self._request5(incoming, client, chosen)

    def _request_of_http(self, incoming: Incoming, client: Endpoint) -> SocksRequest:
        wire = incoming.read(http.HeadReader())
        identity = self._authenticator.http(incoming, client, wire.credentials)
        return SocksRequest(incoming, HTTP, "connect", client, read_host(wire.host), wire.port, identity)

    def _request4(self, incoming: Incoming, client: Endpoint) -> SocksRequest:
        wire = incoming.read(socks4.parse_request)
        identity = self._authenticator.version4(incoming, client, wire.userid)
        command = _COMMANDS4[wire.command]
        if command not in self._commands:
            raise SocksError(socks4.Reply.REJECTED, f"{wire.command.name} is not available")
        return SocksRequest(incoming, socks4.VERSION, command, client, read_host(wire.host), wire.port, identity)

    def _request5(self, incoming: Incoming, client: Endpoint, chosen: bool) -> SocksRequest:
        identity = ANONYMOUS if chosen else self._authenticator.version5(incoming, client)
        wire = incoming.read(socks5.parse_request)
        command = _COMMANDS5[wire.command]
        if command not in self._commands:
            raise SocksError(socks5.Reply.COMMAND_NOT_SUPPORTED, f"{wire.command.name} is not available")
        reverse = wire.command is socks5.Command.RESOLVE_PTR
        return SocksRequest(
            incoming, socks5.VERSION, command, client, read_host(wire.host), wire.port, identity, reverse
        )


def _say_goodbye(sock: gsocket.socket, answer: bytes) -> None:
    """Send the last answer, and close so that it arrives."""
    try:
        sock.settimeout(GOODBYE)
        sock.sendall(answer)
    except OSError:
        pass
    close_gently(sock, GOODBYE)

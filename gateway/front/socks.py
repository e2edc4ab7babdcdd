"""The SOCKS front: handshakes of versions 4, 4a and 5 over a socket; the wire formats are in socks4 and socks5."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent
import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from gateway.dial import Dialer, DialError, DialFailure
from gateway.flow_runner import FlowRunner
from gateway.front import socks4, socks5
from gateway.front.socks5 import SocksError
from gateway.model import ConnectRequest
from gateway.sockets import close_gently, endpoint

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


class _Gone(Exception):
    """The client closed in the middle of its handshake."""


class _Handshake:
    """What has come from the client and is not consumed yet."""

    def __init__(self, sock: gsocket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()

    def read(self, parse: Callable[[bytes], tuple[T, int] | None]) -> T:
        """Receive until `parse` has a message. What is behind it stays in the buffer: it is the server's."""
        while (result := parse(bytes(self.buffer))) is None:
            self._receive()
        message, used = result
        del self.buffer[:used]
        return message

    def peek(self) -> int:
        """The first byte."""
        while not self.buffer:
            self._receive()
        return self.buffer[0]

    def _receive(self) -> None:
        data = self.sock.recv(READ_SIZE)
        if not data:
            raise _Gone
        self.buffer += data


class SocksFront:
    """Serves SOCKS clients. `timeout`: seconds for a whole handshake, however the client dribbles."""

    def __init__(self, dialer: Dialer, runner: FlowRunner, timeout: float) -> None:
        self._dialer = dialer
        self._runner = runner
        self._timeout = timeout

    def handle(self, sock: gsocket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        client = endpoint(address)
        handshake = _Handshake(sock)
        version = 0
        try:
            with gevent.Timeout(self._timeout):
                version = handshake.peek()
                request = self._request(handshake, client, version)
        except gevent.Timeout:
            log.info("socks.timeout", client=str(client), seconds=self._timeout)
            sock.close()
        except (_Gone, OSError):
            sock.close()
        except SocksError as error:
            log.info("socks.malformed", client=str(client), reason=str(error))
            self._refuse(sock, version, error.reply)
        else:
            if request is not None:
                self._connect(handshake, version, request)

    def _request(self, handshake: _Handshake, client: Endpoint, version: int) -> ConnectRequest | None:
        """Read the handshake up to the request. None if it was answered already. Raises SocksError."""
        if version == socks4.VERSION:
            four = handshake.read(socks4.parse_request)
            if four.command is not socks4.Command.CONNECT:
                raise SocksError(socks4.Reply.REJECTED, f"{four.command.name} is not available")
            return ConnectRequest("connect", client, four.host, four.port)
        greeting = handshake.read(socks5.parse_greeting)
        method = socks5.choose_method(greeting.methods, [socks5.Method.NONE])
        handshake.sock.sendall(socks5.encode_method(method))
        if method is socks5.Method.NO_ACCEPTABLE:
            log.info("socks.no_method", client=str(client), offered=list(greeting.methods))
            close_gently(handshake.sock, GOODBYE)
            return None
        five = handshake.read(socks5.parse_request)
        if five.command is not socks5.Command.CONNECT:
            raise SocksError(socks5.Reply.COMMAND_NOT_SUPPORTED, f"{five.command.name} is not available")
        return ConnectRequest("connect", client, five.host, five.port)

    def _connect(self, handshake: _Handshake, version: int, request: ConnectRequest) -> None:
        sock = handshake.sock
        target = f"{request.host}:{request.port}"
        try:
            server = self._dialer.connect(request)
        except DialError as error:
            log.info(
                "socks.denied" if error.failure == "denied" else "socks.failed",
                client=str(request.client),
                target=target,
                failure=error.failure,
                rule=error.rule,
                detail=str(error),
            )
            reply = _REPLIES[error.failure] if version == socks5.VERSION else socks4.Reply.REJECTED
            self._refuse(sock, version, reply)
            return
        try:
            bound = endpoint(server.getsockname())
            if version == socks5.VERSION:
                sock.sendall(socks5.encode_reply(socks5.Reply.SUCCEEDED, bound))
            else:
                sock.sendall(socks4.encode_reply(socks4.Reply.GRANTED, bound))
        except OSError:
            server.close()
            sock.close()
            return
        self._runner.run("socks", sock, server, early=bytes(handshake.buffer), user=request.user)

    def _refuse(self, sock: gsocket.socket, version: int, reply: int | None) -> None:
        """Send a failure reply (None: nothing that the client would understand) and close."""
        try:
            if reply is not None and version == socks5.VERSION:
                sock.sendall(socks5.encode_reply(socks5.Reply(reply)))
            elif reply is not None:
                sock.sendall(socks4.encode_reply(socks4.Reply(reply)))
        except OSError:
            pass
        close_gently(sock, GOODBYE)

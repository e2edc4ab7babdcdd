"""The short way for the plainest connections: libev callbacks from accepting to the relay, without a greenlet (decision
0040).

Only plain connections take it: SOCKS 5 or HTTP without authentication with CONNECT to an address, or a redirected
connection, to a port without a module, permitted by a rule without further conditions. Everything else is handed over
as it stands to the front with the greenlets, which decides anew. For speed it has a small codec of its own beside
`socks5`.
"""

from __future__ import annotations

import _socket
import ipaddress
from collections.abc import Callable
from functools import partial
from socket import AF_INET, inet_ntoa
from time import monotonic
from typing import Any, Protocol

from alg.address import Address, Endpoint, canonical, parse_ip
from alg.socks import http, socks5
from alg.socks.socks5 import SocksError
from gateway.driver.runner import End, FlowRunner
from gateway.flow.dial import DialError, dial_error
from gateway.flow.quick_dial import QuickDialer, cooperative
from gateway.front.socks.connect import ConnectCommand
from gateway.front.socks.request import HTTP, READ_SIZE, Incoming, SocksRequest
from gateway.front.socks.server import SocksFront
from gateway.front.transparent.original_dst import original_destination
from gateway.front.transparent.tcp import TransparentFront
from gateway.model.hosts import read_host
from gateway.model.requests import ConnectRequest
from gateway.net.relay.poller import READ, Watch
from gateway.net.relay.splice import Relay
from gateway.net.relay.wheel import WheelEntry
from gateway.net.sockets import endpoint
from gateway.policy.clients import ClientUse
from gateway.policy.decide import Decision

_CHOSEN = socks5.encode_method(socks5.Method.NONE)
_CONNECT4 = bytes((socks5.VERSION, socks5.Command.CONNECT, 0, socks5.AddressType.IPV4))
_CONNECT6 = bytes((socks5.VERSION, socks5.Command.CONNECT, 0, socks5.AddressType.IPV6))
_GRANTED4 = bytes((socks5.VERSION, socks5.Reply.SUCCEEDED, 0, socks5.AddressType.IPV4))
_CONNECT_HTTP = b"CONNECT "
_GRANTED_HTTP = http.encode_answer(200)


class Taking(Protocol):
    """The interface of the acceptor. From `begin` to `end` a connection is on its way to the relay; `spawn` runs what
    is handed over in a greenlet. `client` is the text of an address."""

    def begin(self, client: str) -> ClientUse | None: ...

    def end(self, holder: ClientUse | None) -> None: ...

    def spawn(self, handler: Callable[[], None], client: str) -> None: ...


class QuickSocks:
    """CONNECT of SOCKS 5, and of HTTP where that is served, for clients that need not authenticate."""

    def __init__(
        self,
        front: SocksFront,
        command: ConnectCommand,
        dialer: QuickDialer,
        runner: FlowRunner,
        relay: Relay,
        timeout: float,
        taking: Taking,
    ) -> None:
        """`timeout`: seconds for a whole handshake."""
        self.front = front
        self.command = command
        self.dialer = dialer
        self.runner = runner
        self.poller = relay.poller
        self.wheel = relay.wheel
        self.timeout = timeout
        self.taking = taking

    def accept(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        _Handshake(self, sock, address)


class _Handshake:
    """One SOCKS connection until it is handed over: to the relay, or to the front with greenlets."""

    __slots__ = (
        "_address",
        "_buffer",
        "_chosen",
        "_decision",
        "_entry",
        "_head",
        "_holder",
        "_lane",
        "_server",
        "_since",
        "_sock",
        "_version",
        "_watch",
    )

    def __init__(self, lane: QuickSocks, sock: _socket.socket, address: tuple[object, ...]) -> None:
        self._lane = lane
        self._sock = sock
        self._address = address
        self._holder = lane.taking.begin(str(address[0]))
        self._buffer = b""
        self._head: http.HeadReader | None = None  # of HTTP
        self._chosen = False
        self._version: int = socks5.VERSION
        self._since = monotonic()
        self._server: Endpoint | None = None
        self._decision: Decision | None = None
        self._entry: WheelEntry = lane.wheel.add(self._since + lane.timeout, self._expire)
        self._watch: Watch = lane.poller.watch(sock.fileno(), READ, self._readable, self._holder)

    def _readable(self, _events: int) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the client has gone
            self._leave(closing=True)
            self._sock.close()
            return
        self._buffer = buffer = self._buffer + data if self._buffer else data
        if not self._chosen:
            if buffer[0] != socks5.VERSION:
                self._request_of_http(buffer)
                return
            if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
                return
            end = 2 + buffer[1]
            if socks5.Method.NONE not in buffer[2:end] or not self._send(_CHOSEN):
                self._hand_over()
                return
            self._chosen = True
            self._buffer = buffer = buffer[end:]
        if len(buffer) < 4:
            return
        kind = buffer[:4]
        if kind == _CONNECT4:
            self._request(buffer, 8)
        elif kind == _CONNECT6:
            self._request(buffer, 20)
        else:
            self._hand_over()

    def _request(self, buffer: bytes, end: int) -> None:
        if len(buffer) < end + 2:
            return
        packed, port = buffer[4:end], buffer[end] << 8 | buffer[end + 1]
        host = inet_ntoa(packed) if end == 8 else str(canonical(ipaddress.IPv6Address(packed)))
        self._decide(host, parse_ip(host), port, end + 2)

    def _request_of_http(self, buffer: bytes) -> None:
        """A head that names an address and no user; whatever else it is, the front reads it."""
        if not self._lane.front.serves_http or buffer[: len(_CONNECT_HTTP)] != _CONNECT_HTTP[: len(buffer)]:
            self._hand_over()
            return
        if self._head is None:
            self._head = http.HeadReader()
        try:
            found = self._head(buffer)
            if found is None:
                return
            request, end = found
            host = read_host(request.host)
            address = ipaddress.ip_address(host)
        except (SocksError, ValueError):  # a name, or nothing that is served
            self._hand_over()
            return
        if request.credentials is not None or "%" in host:
            self._hand_over()
            return
        self._version = HTTP
        self._decide(host, address, request.port, end)

    def _decide(self, host: str, address: Address, port: int, end: int) -> None:
        """Connect, if nothing but an address is to be looked at. `end`: where the request ends in what has come."""
        lane = self._lane
        decision = None
        if not lane.runner.has_module(port):
            request = ConnectRequest("connect", endpoint(self._address), host, port)
            decision = lane.dialer.decide(request, address)
        if decision is None:
            self._hand_over()
            return
        self._buffer = self._buffer[end:]
        self._server = Endpoint(host, port)
        self._decision = decision
        lane.wheel.discard(self._entry)
        self._watch.handler = self._early
        lane.dialer.start(address, port, self._dialled, self._holder)

    def _early(self, _events: int) -> None:
        """The client sends or ends something before its server is connected. That can wait."""
        self._watch.rest()

    def _dialled(self, result: _socket.socket | OSError, watch: Watch | None) -> None:
        decision, server = self._decision, self._server
        assert decision is not None
        assert server is not None
        client = endpoint(self._address)
        if isinstance(result, OSError):
            self._watch.forget(closing=False)
            taking = self._lane.taking
            taking.end(self._holder)
            taking.spawn(partial(self._fail, client, server, dial_error(result)), client.host)
            return
        assert watch is not None
        self._join(client, server, result, watch, decision)
        self._lane.taking.end(self._holder)

    def _join(
        self, client: Endpoint, server: Endpoint, dialled: _socket.socket, watch: Watch, decision: Decision
    ) -> None:
        """The server is connected: tell the client, and begin the flow."""
        try:
            http_client = self._version == HTTP
            granted = self._send(_GRANTED_HTTP if http_client else _grant(dialled.family, dialled.getsockname()))
        except OSError:
            granted = False
        if not granted:  # the client has gone
            self._watch.forget(closing=True)
            watch.forget(closing=True)
            self._sock.close()
            dialled.close()
            return
        ends = End(client, self._sock, self._watch), End(server, dialled, watch)
        self._lane.runner.join("socks", *ends, self._buffer, decision)

    def _send(self, answer: bytes) -> bool:
        """Send the first bytes of a connection. They always fit; otherwise the connection is broken."""
        try:
            return self._sock.send(answer) == len(answer)
        except OSError:
            return False

    def _fail(self, client: Endpoint, server: Endpoint, error: DialError) -> None:
        incoming = Incoming(cooperative(self._sock))
        request = SocksRequest(incoming, self._version, "connect", client, server.host, server.port)
        self._lane.command.fail(request, error)

    def _hand_over(self) -> None:
        """Let a greenlet continue with what has come, for the rest of the time."""
        self._leave(closing=False)
        left = self._lane.timeout - (monotonic() - self._since)
        self._lane.taking.spawn(partial(self._go_on, left), str(self._address[0]))

    def _go_on(self, seconds: float) -> None:
        self._lane.front.resume(cooperative(self._sock), self._address, self._buffer, self._chosen, seconds)

    def _expire(self, _now: float) -> None:
        self._lane.front.log_timeout(endpoint(self._address))
        self._leave(closing=True)
        self._sock.close()

    def _leave(self, closing: bool) -> None:
        self._lane.wheel.discard(self._entry)
        self._watch.forget(closing)
        self._lane.taking.end(self._holder)


class QuickTransparent:
    """The short way of redirected connections."""

    def __init__(self, front: TransparentFront, dialer: QuickDialer, runner: FlowRunner, taking: Taking) -> None:
        self._front = front
        self._dialer = dialer
        self._runner = runner
        self._taking = taking

    def accept(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        plain = self._plain(sock, address)
        if plain is None:
            self._taking.spawn(partial(self._hand_over, sock, address), str(address[0]))
            return
        request, target, decision = plain
        holder = self._taking.begin(request.client.host)
        self._dialer.start(target, request.port, partial(self._dialled, sock, request, decision, holder), holder)

    def _plain(
        self, sock: _socket.socket, address: tuple[object, ...]
    ) -> tuple[ConnectRequest, Address, Decision] | None:
        try:
            target = original_destination(sock)
            local = endpoint(sock.getsockname())
        except OSError:
            return None
        if target is None or target == local or self._runner.has_module(target.port) or self._front.publishes(target):
            return None
        request = ConnectRequest("transparent", endpoint(address), target.host, target.port)
        ip = target.ip
        decision = self._dialer.decide(request, ip)
        return (request, ip, decision) if decision is not None else None

    def _dialled(
        self,
        sock: _socket.socket,
        request: ConnectRequest,
        decision: Decision,
        holder: ClientUse | None,
        result: _socket.socket | OSError,
        watch: Watch | None,
    ) -> None:
        server = Endpoint(request.host, request.port)
        if isinstance(result, OSError):
            self._taking.end(holder)
            self._front.fail(sock, request.client, server, dial_error(result))
            return
        assert watch is not None
        self._runner.join("transparent", End(request.client, sock), End(server, result, watch), b"", decision)
        self._taking.end(holder)

    def _hand_over(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        self._front.handle(cooperative(sock), address)


def _grant(family: int, bound: tuple[Any, ...]) -> bytes:
    """Return the success reply with the bound endpoint (RFC 1928 section 6). `bound`: as `getsockname` has it, which is
    four values for IPv6."""
    if family == AF_INET:
        host: str = bound[0]
        port: int = bound[1]
        return _GRANTED4 + _socket.inet_aton(host) + port.to_bytes(2, "big")
    return socks5.encode_reply(socks5.Reply.SUCCEEDED, endpoint(bound))

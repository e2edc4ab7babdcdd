"""Connections through proxies for asyncio: the same steps as in `blocking`, and the same errors."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from alg.socks.dialogue import Granted
from alg.socks.errors import ProxyError
from alg.socks.gssapi import Level, MessageType, encode_message, parse_message
from alg.socks.socks5 import Command, SocksError
from alg.socks.udp import Reassembly, encode_target, parse_header
from gateway.client.blocking import UNSPECIFIED, Address, late
from gateway.client.proxy import Chain, Proxy, Via, is_address
from gateway.client.pump import protected
from gateway.client.session import Protect, Receive, Send, SessionSteps, TcpDial, broken, request, second, tunnel

P = TypeVar("P", bound=asyncio.DatagramProtocol)


async def connect(via: Via, host: str, port: int, timeout: float | None = None) -> socket.socket:
    """Connect through proxies, and return a connected socket that does not block, as
    `asyncio.open_connection(sock=...)` needs it. `timeout`: seconds for the whole operation. Raises ProxyError,
    ProxySyntaxError."""
    chain = Chain.of(via)
    carrier = _StepRunner()
    await carrier.within(timeout, tunnel(chain, await _for_proxy(chain.last, host), port))
    return carrier.release()


async def open_connection(
    via: Via, host: str, port: int, *, timeout: float | None = None, **more: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Like `asyncio.open_connection`, through proxies. `more` is passed on to it (with `ssl`, the server's name is
    `host`)."""
    sock = await connect(via, host, port, timeout)
    if more.get("ssl"):
        more.setdefault("server_hostname", host)
    try:
        return await asyncio.open_connection(sock=sock, **more)
    except BaseException:
        sock.close()
        raise


async def listen(via: Via, host: str, port: int = 0, timeout: float | None = None) -> Listening:
    """Let one peer connect (BIND). `host` and `port` are those of the expected peer. Raises ProxyError."""
    chain = Chain.of(via)
    carrier = _StepRunner()
    first = await carrier.within(timeout, request(chain, Command.BIND, await _for_proxy(chain.last, host), port))
    return Listening(chain.last, carrier, first)


async def resolve(via: Via, name: str, timeout: float | None = None) -> str:
    """Return the address that the proxy finds for a name (Tor's RESOLVE). Raises ProxyError."""
    carrier = _StepRunner()
    try:
        return (await carrier.within(timeout, request(Chain.of(via), Command.RESOLVE, name, 0))).host
    finally:
        carrier.close()


async def create_datagram_endpoint(
    factory: Callable[[], P], via: Via, timeout: float | None = None
) -> tuple[Datagrams, P]:
    """Open an association (UDP ASSOCIATE) for an `asyncio.DatagramProtocol`. Its `datagram_received` gets each datagram
    with its sender, and its `connection_lost` is called when the proxy has ended the association. Raises ProxyError."""
    chain = Chain.of(via)
    if len(chain.proxies) > 1:
        raise ProxyError("failed", "there are no datagrams through a chain of proxies")
    carrier = _StepRunner()
    granted = await carrier.within(timeout, request(chain, Command.UDP_ASSOCIATE, "0.0.0.0", 0))
    control = carrier.release()
    host = carrier.proxy[0] if granted.host in UNSPECIFIED else granted.host
    protocol = factory()
    loop = asyncio.get_running_loop()
    try:
        transport, wire = await loop.create_datagram_endpoint(
            lambda: _Wire(protocol, granted), remote_addr=(host, granted.port)
        )
    except BaseException:
        control.close()
        raise
    datagrams = Datagrams(transport, control, granted)
    wire.begin(datagrams)
    return datagrams, protocol


class Listening:
    """A BIND that waits for one peer. `address` is the endpoint to which the peer has to connect."""

    def __init__(self, proxy: Proxy, carrier: _StepRunner, first: Granted) -> None:
        self._proxy = proxy
        self._carrier = carrier
        self._first = first
        self.address: Address = (carrier.proxy[0] if first.host in UNSPECIFIED else first.host, first.port)

    async def accept(self, timeout: float | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Address]:
        """Wait for the peer, and return its connection. May be called once. Raises ProxyError."""
        peer = await self._carrier.within(timeout, second(self._proxy, self._first))
        reader, writer = await asyncio.open_connection(sock=self._carrier.release())
        return reader, writer, (peer.host, peer.port)

    def close(self) -> None:
        self._carrier.close()


class Datagrams:
    """The transport of an association."""

    def __init__(self, transport: asyncio.DatagramTransport, control: socket.socket, granted: Granted) -> None:
        self._transport = transport
        self._control = control
        self._granted = granted
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._from_control)

    def sendto(self, data: bytes, address: Address) -> None:
        """Send a datagram to a host (a name or an address) and port. Raises ValueError for data that does not fit into
        one."""
        wire = encode_target(*address) + data
        mechanism = self._granted.mechanism
        if mechanism is not None and self._granted.level is not Level.NONE:
            wire = encode_message(MessageType.ENCAPSULATION, mechanism.wrap(wire, self._granted.level))
        self._transport.sendto(wire)

    def close(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        self._transport.close()

    def _from_control(self) -> None:
        try:
            ended = not self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self.close()


class _Wire(asyncio.DatagramProtocol):
    """Passes datagrams between the proxy and the program's protocol."""

    def __init__(self, protocol: asyncio.DatagramProtocol, granted: Granted) -> None:
        self._protocol = protocol
        self._granted = granted
        self._reassembly = Reassembly()

    def begin(self, datagrams: Datagrams) -> None:
        self._protocol.connection_made(datagrams)  # type: ignore[arg-type]

    def datagram_received(self, wire: bytes, _address: object) -> None:
        mechanism = self._granted.mechanism
        try:
            if mechanism is not None and self._granted.level is not Level.NONE:
                found = parse_message(wire, MessageType.ENCAPSULATION)
                if found is None or found[1] != len(wire):
                    return
                wire = mechanism.unwrap(found[0], self._granted.level)
            header, size = parse_header(wire)
        except (SocksError, ValueError):
            return
        data = self._reassembly.add(header, wire[size:], time.monotonic())
        if data is not None:
            self._protocol.datagram_received(data, (header.host, header.port))

    def error_received(self, error: Exception) -> None:
        self._protocol.error_received(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)


class _StepRunner:
    """Carries out the steps of sessions with one socket."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.proxy: Address = ("", 0)

    async def within(self, timeout: float | None, session: SessionSteps) -> Granted:
        """Carry out all steps of a session, in at most `timeout` seconds. Closes the socket and raises ProxyError if
        that fails."""
        try:
            async with asyncio.timeout(timeout):
                return await self._carry_out(session)
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError) and not isinstance(error, ProxyError):
                raise late() from error
            raise

    def release(self) -> socket.socket:
        assert self.sock is not None
        sock, self.sock = self.sock, None
        return sock

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    async def _carry_out(self, session: SessionSteps) -> Granted:
        answer: Any = None
        while True:
            try:
                step = session.send(answer)
            except StopIteration as stop:
                granted: Granted = stop.value
                return granted
            try:
                answer = await self._do(step)
            except TimeoutError:
                raise
            except OSError as error:
                session.throw(broken(error))  # it says which proxy that was, and goes no further

    async def _do(self, step: TcpDial | Send | Receive | Protect) -> bytes | None:
        loop = asyncio.get_running_loop()
        if isinstance(step, TcpDial):
            await self._dial(loop, step.host, step.port)
            return None
        assert self.sock is not None
        if isinstance(step, Send):
            await loop.sock_sendall(self.sock, step.data)
            return None
        if isinstance(step, Receive):
            return await loop.sock_recv(self.sock, step.size)
        self.sock = protected(self.sock, step.codec, step.early)
        self.sock.setblocking(False)
        return None

    async def _dial(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ProxyError("host", f"{host}: {error.strerror or error}") from error
        failure: OSError | None = None
        for family, _, protocol, _, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM, protocol)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                failure = failure or error
                continue
            self.sock, self.proxy = sock, (str(address[0]), int(address[1]))
            return
        assert failure is not None
        raise ProxyError("failed", f"{host} port {port}: {failure.strerror or failure}") from failure


async def _for_proxy(proxy: Proxy, host: str) -> str:
    """Return the host in a form that the proxy understands. SOCKS 4 has no names, so this host looks them up. Raises
    ProxyError."""
    if proxy.kind != "socks4" or is_address(host):
        return host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, 0, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProxyError("host", f"{host}: {error.strerror or error}") from error
    return str(found[0][4][0])

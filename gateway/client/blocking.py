"""Connections through proxies with plain sockets: for threads, and for greenlets where gevent has patched `socket`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from types import TracebackType
from typing import Any

from alg.socks.dialogue import Granted
from alg.socks.errors import ProxyError
from alg.socks.gssapi import Level, MessageType, encode_message, parse_message
from alg.socks.socks5 import Command, SocksError
from alg.socks.udp import MAX_DATA, Reassembly, fragments, parse_header
from gateway.client.proxy import Chain, Proxy, Via, is_address
from gateway.client.pump import protected
from gateway.client.session import Protect, Receive, Send, SessionSteps, TcpDial, broken, request, second, tunnel
from gateway.client.sockets import unpatched

Address = tuple[str, int]
UNSPECIFIED = ("0.0.0.0", "::", "")
MAX_DATAGRAM = 65535
MAPPED = "::ffff:"  # how an address of IPv4 begins for a socket of IPv6 (RFC 4291 section 2.5.5.2)


def _look_up_here(host: str, port: int, family: int) -> list[Any]:
    """Return the addresses of a host, by this host's own resolver; for a socket of IPv6 also those of IPv4, as such a
    socket is told them (::ffff:192.0.2.1). Raises ProxyError."""
    flags = socket.AI_V4MAPPED | socket.AI_ALL if family == socket.AF_INET6 else 0
    try:
        found: list[Any] = unpatched(socket.getaddrinfo)(host, port, family, socket.SOCK_STREAM, 0, flags)
    except OSError as error:
        raise ProxyError("host", f"{host}: {error.strerror or error}") from error
    return found


class Deadline:
    """One deadline for a whole operation. `timeout`: seconds from now; None: no deadline."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds that are left. Raises ProxyError ("timeout") if there are none."""
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise late()
        return left


def late() -> ProxyError:
    return ProxyError("timeout", "no answer in time")


def connect(via: Via, host: str, port: int, timeout: float | None = None) -> socket.socket:
    """Connect to `host` (a name or an address) through proxies. The returned socket blocks, and has no timeout of its
    own.

    `timeout`: seconds for the whole operation. Raises ProxyError (an OSError with the errno that a connection without a
    proxy would have; also a ConnectionRefusedError, TimeoutError or PermissionError, if it means that),
    ProxySyntaxError.
    """
    chain = Chain.of(via)
    carrier = StepRunner(Deadline(timeout))
    carrier.carry_out(tunnel(chain, _for_proxy(chain.last, host), port))
    return carrier.release()


def connect_socket(sock: socket.socket, via: Via, host: str, port: int, timeout: float | None = None) -> Granted:
    """Like `connect`, with the caller's own socket, which is not connected yet. Returns what the last proxy said. If
    the connection to the proxy is encoded, the descriptor then leads to a pair of sockets; if the proxy has no address
    of the socket's family, to a socket of another one. The socket stays open if this fails."""
    chain = Chain.of(via)
    carrier = StepRunner(Deadline(timeout), sock)
    before = sock.gettimeout()
    try:
        return carrier.carry_out(tunnel(chain, _for_proxy(chain.last, host), port))
    finally:
        sock.settimeout(before)


def listen(via: Via, host: str, port: int = 0, timeout: float | None = None) -> Listening:
    """Let one peer connect (BIND). `host` and `port` are those of the expected peer. Raises ProxyError."""
    chain = Chain.of(via)
    carrier = StepRunner(Deadline(timeout))
    first = carrier.carry_out(request(chain, Command.BIND, _for_proxy(chain.last, host), port))
    return Listening(chain.last, carrier, first)


def datagrams(via: Via, timeout: float | None = None) -> Datagrams:
    """Open an association for datagrams through a proxy (UDP ASSOCIATE, SOCKS 5). Raises ProxyError; a chain of proxies
    has no associations."""
    chain = Chain.of(via)
    if len(chain.proxies) > 1:
        raise ProxyError("failed", "there are no datagrams through a chain of proxies")
    carrier = StepRunner(Deadline(timeout))
    try:
        granted = carrier.carry_out(request(chain, Command.UDP_ASSOCIATE, "0.0.0.0", 0))
        return Datagrams(carrier, granted)
    except BaseException:
        carrier.close()
        raise


def resolve(via: Via, name: str, timeout: float | None = None) -> str:
    """Return the address that the proxy finds for a name (Tor's RESOLVE, which algate has too). Raises ProxyError."""
    return _look_up(via, Command.RESOLVE, name, timeout)


def resolve_address(via: Via, address: str, timeout: float | None = None) -> str:
    """Return the name that the proxy finds for an address (RESOLVE_PTR). Raises ProxyError."""
    return _look_up(via, Command.RESOLVE_PTR, address, timeout)


def _look_up(via: Via, command: Command, host: str, timeout: float | None) -> str:
    carrier = StepRunner(Deadline(timeout))
    try:
        return carrier.carry_out(request(Chain.of(via), command, host, 0)).host
    finally:
        carrier.close()


class StepRunner:
    """Carries out the steps of sessions with one socket: `sock` if it is given, otherwise one of its own."""

    def __init__(self, deadline: Deadline, sock: socket.socket | None = None) -> None:
        self.deadline = deadline
        self.sock = sock
        self.proxy: Address = ("", 0)  # where the first proxy was found
        self._given = sock

    def carry_out(self, session: SessionSteps) -> Granted:
        """Carry out all steps of a session, and return its result. Closes its own socket and raises ProxyError if that
        fails."""
        try:
            return self._carry_out(session)
        except TimeoutError as error:
            self._abandon()
            if isinstance(error, ProxyError):
                raise
            raise late() from error
        except BaseException:
            self._abandon()
            raise

    def release(self) -> socket.socket:
        """Return the connection, which belongs to the caller from now on."""
        assert self.sock is not None
        self.sock.settimeout(None)
        sock, self.sock = self.sock, None
        return sock

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _abandon(self) -> None:
        if self.sock is not None and self._given is None:
            self.close()

    def _carry_out(self, session: SessionSteps) -> Granted:
        answer: Any = None
        while True:
            try:
                step = session.send(answer)
            except StopIteration as stop:
                granted: Granted = stop.value
                return granted
            try:
                answer = self._do(step)
            except TimeoutError:
                raise
            except OSError as error:
                session.throw(broken(error))  # it says which proxy that was, and goes no further

    def _do(self, step: TcpDial | Send | Receive | Protect) -> bytes | None:
        match step:
            case TcpDial(host, port):
                self._dial(host, port)
                return None
            case Protect(codec, early):
                assert self.sock is not None
                self._replace(codec, early)
                return None
        sock = self.sock
        assert sock is not None
        sock.settimeout(self.deadline.left())
        if isinstance(step, Send):
            view = memoryview(step.data)
            while view:  # sendall would have its time for each part
                sock.settimeout(self.deadline.left())
                view = view[sock.send(view) :]
            return None
        return sock.recv(step.size)

    def _dial(self, host: str, port: int) -> None:
        """Connect to the first proxy, at one of its addresses."""
        plain = unpatched(socket.socket)
        given, found = self._given, self._look_up(host, port)
        failure: OSError | None = None
        for kind, _, protocol, _, address in found:
            own = given if given is not None and given.family == kind else None
            sock = own or plain(kind, socket.SOCK_STREAM, protocol)
            try:
                sock.settimeout(self.deadline.left())
                if kind == socket.AF_INET6 and str(address[0]).startswith(MAPPED):
                    with contextlib.suppress(OSError):  # it is bound, and the connection will say whether it may
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                plain.connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                failure = failure or error
                if own is not None:
                    break
                sock.close()
                continue
            if given is not None and own is None:
                with sock:
                    os.dup2(sock.fileno(), given.fileno(), inheritable=False)
            self.sock, self.proxy = given or sock, (str(address[0]), int(address[1]))
            return
        assert failure is not None
        if isinstance(failure, TimeoutError):
            raise ProxyError("timeout", f"{host}: no answer in time") from failure
        # That nobody listens there says nothing of the server.
        raise ProxyError("failed", f"{host} port {port}: {failure.strerror or failure}") from failure

    def _look_up(self, host: str, port: int) -> list[Any]:
        """Return the proxy's addresses: of the family of the given socket, or all of them, where it has none of that
        family. Raises ProxyError."""
        if self._given is not None:
            with contextlib.suppress(ProxyError):
                return _look_up_here(host, port, int(self._given.family))
        return _look_up_here(host, port, 0)

    def _replace(self, codec: Any, early: bytes) -> None:
        assert self.sock is not None
        if self._given is None:
            self.sock = protected(self.sock, codec, early)
            return
        near = protected(self._given.dup(), codec, early)
        os.dup2(near.fileno(), self._given.fileno(), inheritable=False)
        near.close()


class Listening:
    """A BIND that waits for one peer. `address` is the host and the port to which the peer has to connect."""

    def __init__(self, proxy: Proxy, carrier: StepRunner, first: Granted) -> None:
        self._proxy = proxy
        self._carrier = carrier
        self._first = first
        host = carrier.proxy[0] if first.host in UNSPECIFIED else first.host
        self.address: Address = (host, first.port)

    def accept(self, timeout: float | None = None) -> tuple[socket.socket, Address]:
        """Wait for the peer, and return its connection and its endpoint. May be called once. Raises ProxyError."""
        self._carrier.deadline = Deadline(timeout)
        peer = self._carrier.carry_out(second(self._proxy, self._first))
        return self._carrier.release(), (peer.host, peer.port)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the peer has come, or will not come any more."""
        return self._carrier.sock.fileno() if self._carrier.sock is not None else -1

    def close(self) -> None:
        self._carrier.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self.close()


class Datagrams:
    """An association: datagrams to and from any host, through the proxy. It lasts as long as its control connection.

    `fragment`: number of bytes of data beyond which a datagram is sent in SOCKS fragments; None: never.
    """

    def __init__(self, carrier: StepRunner, granted: Granted, fragment: int | None = None) -> None:
        assert carrier.sock is not None
        self.fragment = fragment
        self._control = carrier.release()
        self._mechanism = granted.mechanism if granted.level is not Level.NONE else None
        self._level = granted.level
        self._reassembly = Reassembly()
        self._timeout: float | None = None
        # Proxies behind a NAT, or that listen on all addresses, do not know how we see them.
        host = carrier.proxy[0] if granted.host in UNSPECIFIED else granted.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = unpatched(socket.socket)(family, socket.SOCK_DGRAM)
        try:
            unpatched(socket.socket).connect(self._sock, (host, granted.port))
        except OSError as error:
            self.close()
            raise ProxyError("network", f"{host}: {error.strerror or error}") from error
        self.relay: Address = (host, granted.port)

    def settimeout(self, timeout: float | None) -> None:
        """Set how many seconds `recvfrom` waits at most; None: for ever."""
        self._timeout = timeout

    def sendto(self, data: bytes, address: Address) -> int:
        """Send a datagram to a host (a name or an address) and port. Raises OSError, and ValueError for data that does
        not fit into one."""
        if len(data) > MAX_DATA:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        for part in fragments(address[0], address[1], data, self.fragment or MAX_DATA):
            if self._mechanism is not None:
                part = encode_message(MessageType.ENCAPSULATION, self._mechanism.wrap(part, self._level))
            self._sock.send(part)
        return len(data)

    def recvfrom(self, _size: int = MAX_DATAGRAM) -> tuple[bytes, Address]:
        """Return the next datagram and its sender. Raises TimeoutError, and ConnectionAbortedError if the proxy has
        ended the association."""
        deadline = Deadline(self._timeout)
        while True:
            left = deadline.left()
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
            poll.register(self._control.fileno(), select.POLLIN)
            ready = poll.poll(None if left is None else left * 1000)
            for descriptor, _ in sorted(ready, key=lambda found: found[0] != self._sock.fileno()):
                if descriptor == self._sock.fileno():
                    found = self._decode(self._sock.recv(MAX_DATAGRAM))
                    if found is not None:
                        return found
                elif not self._control.recv(4096):
                    raise ProxyError("failed", "the proxy has ended the association")

    def _decode(self, wire: bytes) -> tuple[bytes, Address] | None:
        """Return the contents of a datagram of the proxy; None if it is malformed, or a fragment and not the last
        one."""
        try:
            if self._mechanism is not None:
                found = parse_message(wire, MessageType.ENCAPSULATION)
                if found is None or found[1] != len(wire):
                    return None
                wire = self._mechanism.unwrap(found[0], self._level)
            header, size = parse_header(wire)
        except (SocksError, ValueError):
            return None
        data = self._reassembly.add(header, wire[size:], time.monotonic())
        return None if data is None else (data, (header.host, header.port))

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def end(self) -> None:
        """End the association, from another thread than the one that waits in `recvfrom`: that gets an error."""
        self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()
        self._control.close()

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self.close()


def _for_proxy(proxy: Proxy, host: str) -> str:
    """Return the host in a form that the proxy understands. SOCKS 4 has no names, so this host looks them up. Raises
    ProxyError."""
    if proxy.kind != "socks4" or is_address(host):
        return host
    return str(_look_up_here(host, 0, socket.AF_INET)[0][4][0])

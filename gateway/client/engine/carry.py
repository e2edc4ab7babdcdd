"""Carries what a program in a namespace begins: its connections, its datagrams, its questions for names."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

from alg.address import Endpoint
from alg.socks.errors import ProxyError
from gateway.client.blocking import Address, Datagrams, Listening, connect, datagrams, listen
from gateway.client.engine import kernel, reader
from gateway.client.engine.names import Names, serve_datagrams, serve_stream, thread
from gateway.client.engine.namespace import NAME_SERVER, Namespace
from gateway.client.engine.reader import Reader
from gateway.client.proxy import Chain

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

PIPE = 1 << 20
MOST_ASSOCIATIONS = 256
SWEEP = 1.0  # seconds between two looks for sockets that are gone
_ANCILLARY = socket.CMSG_SPACE(28)


class Carrier:
    """One namespace's traffic. Each connection has two threads, and its bytes stay in the kernel (splice)."""

    def __init__(
        self, space: Namespace, chain: Chain, names: Names, direct: Networks, timeout: float, trace: bool = False
    ) -> None:
        self._space = space
        self._chain = chain
        self._names = names
        self._direct = direct
        self._timeout = timeout
        self._trace = trace
        self._associations: dict[Address, _Association] = {}
        self._refused = False

    def start(self) -> None:
        """Begin to serve, in threads."""
        sockets = self._space.sockets
        for listener in (sockets.streams4, sockets.streams6):
            thread(self._accept, listener)
        for sock in (sockets.datagrams4, sockets.datagrams6):
            thread(self._receive, sock)
        thread(serve_datagrams, self._names, sockets.names)
        thread(self._sweep)

    def _say(self, text: str) -> None:
        if self._trace:
            print(f"algate exec: {text}", file=sys.stderr)

    # --- streams

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                time.sleep(0.05)  # no descriptors: they come back when connections end
                continue
            thread(self._stream, sock)

    def _stream(self, sock: socket.socket) -> None:
        address, port = _original(sock)
        try:
            if (address, port) == (NAME_SERVER, 53):
                serve_stream(self._names, sock, self._timeout)
                return
            server = self._dial(address, port)
        except OSError as error:
            self._say(f"{address} port {port}: {error}")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            return
        self._say(f"{address} port {port}: connected")
        if port == reader.PORT and not self._goes_direct(address):
            client = Endpoint.of(*sock.getpeername()[:2])

            def bind() -> Listening:
                return listen(self._chain, self._names.host_of(address), port, self._timeout)

            Reader(client, Endpoint.of(address, port), bind, self._space.inward, relay).run(sock, server)
            return
        relay(sock, server)

    def _dial(self, address: str, port: int) -> socket.socket:
        if self._goes_direct(address):
            sock = socket.create_connection((address, port), self._timeout)
            sock.settimeout(None)
            return sock
        return connect(self._chain, self._names.host_of(address), port, self._timeout)

    def _goes_direct(self, address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return any(ip in network for network in self._direct if network.version == ip.version)

    # --- datagrams

    def _receive(self, sock: socket.socket) -> None:
        while True:
            data, ancillary, _, client = sock.recvmsg(65535, _ANCILLARY)
            target = _target(ancillary)
            if target is None:
                continue
            key = (str(client[0]), int(client[1]))
            association = self._associations.get(key)
            if association is None or association.ended:
                if len(self._associations) >= MOST_ASSOCIATIONS:
                    continue
                association = self._associations[key] = _Association(self._space, key)
                thread(association.run, self._open)
            try:
                host = target[0] if self._goes_direct(target[0]) else self._names.host_of(target[0])
            except OSError:
                continue
            association.send(data, (host, target[1]), target)

    def _open(self) -> Datagrams:
        try:
            return datagrams(self._chain, self._timeout)
        except ProxyError as error:
            if not self._refused:
                self._refused = True
                print(f"algate exec: no datagrams: {error}", file=sys.stderr)
            raise

    def _sweep(self) -> None:
        """An association ends with the program's socket."""
        while True:
            time.sleep(SWEEP)
            there = self._space.open_ports()
            for key, association in list(self._associations.items()):
                if association.ended or key[1] not in there:
                    association.close()
                    del self._associations[key]


class _Association:
    """The datagrams of one socket of the program."""

    def __init__(self, space: Namespace, client: Address) -> None:
        self.ended = False
        self._space = space
        self._client = client
        self._udp: Datagrams | None = None
        self._waiting: list[tuple[bytes, Address]] = []
        self._targets: dict[Address, Address] = {}  # what the proxy calls them: what the program calls them
        self._answering: dict[Address, socket.socket] = {}
        self._lock = threading.Lock()

    def send(self, data: bytes, host: Address, target: Address) -> None:
        with self._lock:
            self._targets[host] = target
            if self._udp is None:
                if len(self._waiting) < 64:
                    self._waiting.append((data, host))
                return
        with contextlib.suppress(OSError, ValueError):
            self._udp.sendto(data, host)

    def run(self, open_: Callable[[], Datagrams]) -> None:
        """Until the proxy or the program ends it."""
        try:
            udp = open_()
            with self._lock:
                self._udp = udp
                waiting, self._waiting = self._waiting, []
            for data, host in waiting:
                with contextlib.suppress(OSError, ValueError):
                    udp.sendto(data, host)
            while not self.ended:  # `close` ends the association, and so this
                data, source = udp.recvfrom()
                target = self._known(source)
                if target is not None:
                    with contextlib.suppress(OSError):
                        self._from(target).sendto(data, self._client)
        except OSError:
            pass
        finally:
            self.close()
            if self._udp is not None:
                self._udp.close()

    def _known(self, source: Address) -> Address | None:
        """What the program calls whoever has answered; None: it has not written to anybody of that kind."""
        if source in self._targets:
            return self._targets[source]
        named = [target for host, target in self._targets.items() if host[1] == source[1] and host != target]
        return named[0] if len(named) == 1 else None

    def _from(self, target: Address) -> socket.socket:
        if target not in self._answering:
            self._answering[target] = self._space.answering(*target)
        return self._answering[target]

    def close(self) -> None:
        self.ended = True
        with self._lock:
            if self._udp is not None:
                with contextlib.suppress(OSError):
                    self._udp.end()
            for sock in self._answering.values():
                sock.close()
            self._answering.clear()


def _original(sock: socket.socket) -> Address:
    """Where a redirected connection was going."""
    if sock.family == socket.AF_INET6:
        port, host = struct.unpack("!2xH4x16s4x", sock.getsockopt(kernel.SOL_IPV6, kernel.SO_ORIGINAL_DST, 28))
        return socket.inet_ntop(socket.AF_INET6, host), port
    port, host = struct.unpack("!2xH4s8x", sock.getsockopt(socket.IPPROTO_IP, kernel.SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(host), port


def _target(ancillary: Sequence[tuple[int, int, bytes]]) -> Address | None:
    """Where a datagram was going."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == kernel.IP_RECVORIGDSTADDR:
            port, host = struct.unpack_from("!2xH4s", data)
            return socket.inet_ntoa(host), port
        if level == kernel.SOL_IPV6 and kind == kernel.IPV6_RECVORIGDSTADDR:
            port, host = struct.unpack_from("!2xH4x16s", data)
            return socket.inet_ntop(socket.AF_INET6, host), port
    return None


def relay(near: socket.socket, far: socket.socket) -> None:
    """Both directions, until both have ended."""
    back = thread(_splice, far, near)
    _splice(near, far)
    back.join()
    near.close()
    far.close()


def _splice(source: socket.socket, sink: socket.socket) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        while count := os.splice(source.fileno(), writing, PIPE):
            while count:
                count -= os.splice(reading, sink.fileno(), count)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # one of them is gone: so the other one is told
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(reading)
        os.close(writing)

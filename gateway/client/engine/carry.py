"""Carries what a program in a namespace begins: its connections, its datagrams, its questions for names."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from alg.address import Endpoint
from alg.socks.errors import ProxyError
from gateway.client.blocking import Address, Datagrams, Listening, connect, datagrams, listen
from gateway.client.engine import kernel
from gateway.client.engine.messages import Messages, thread
from gateway.client.engine.names import Names, serve_datagrams, serve_stream
from gateway.client.engine.namespace import NAME_SERVER, Namespace
from gateway.client.engine.relay import relay
from gateway.client.proxy import Chain
from gateway.client.sockets import reset

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

# By the port of the server: the module that reads its connections, and its keys, as in `[alg.NAME]` of a gateway.
READ: Mapping[int, tuple[str, Mapping[str, str]]] = {21: ("ftp", {"pasv_address": "peer"})}
MOST_STREAMS = 4096
MOST_ASSOCIATIONS = 256
MOST_TARGETS = 4096  # hosts that one socket may expect answers from
MOST_ANSWERING = 64  # sockets of one association from which answers come
PAUSE = 0.05  # seconds until something is tried again for which there is no room
SWEEP = 1.0  # seconds between two looks for sockets that are gone
_ANCILLARY = socket.CMSG_SPACE(28)


class ProgramCarrier:
    """One namespace's traffic. Each connection has a thread."""

    def __init__(
        self, space: Namespace, chain: Chain, names: Names, direct: Networks, timeout: float, messages: Messages
    ) -> None:
        self._space = space
        self._chain = chain
        self._names = names
        self._direct = direct
        self._timeout = timeout
        self._messages = messages
        self._associations: dict[Address, _Association] = {}
        self._room = threading.Semaphore(MOST_STREAMS)

    def start(self) -> None:
        """Begin to serve, in threads."""
        sockets = self._space.sockets
        for listener in (sockets.streams4, sockets.streams6):
            thread(self._accept, listener)
        for sock in (sockets.datagrams4, sockets.datagrams6):
            thread(self._receive, sock)
        thread(serve_datagrams, self._names, sockets.names)
        thread(self._sweep)

    # --- streams

    def _accept(self, listener: socket.socket) -> None:
        spare = _spare()
        while True:
            self._room.acquire()  # further ones wait in the backlog
            try:
                sock, _ = listener.accept()
            except OSError:  # no descriptors: they come back when connections end
                self._room.release()
                if spare is not None:
                    os.close(spare)
                    _refuse(listener)
                time.sleep(PAUSE)
                spare = _spare()
                continue
            while True:
                try:
                    thread(self._stream, sock)
                    break
                except BlockingIOError:
                    time.sleep(PAUSE)

    def _stream(self, sock: socket.socket) -> None:
        try:
            self._carry(sock)
        finally:
            self._room.release()

    def _carry(self, sock: socket.socket) -> None:
        try:
            address, port = _original(sock)
        except OSError:  # it has gone, or somebody inside has asked our listener itself
            sock.close()
            return
        try:
            if (address, port) == (NAME_SERVER, 53):
                serve_stream(self._names, sock, self._timeout)
                return
            server = self._dial(address, port)
        except OSError as error:
            self._messages.trace(f"{address} port {port}: {error}")
            reset(sock)
            return
        self._messages.trace(f"{address} port {port}: connected")
        if port in READ and not self._goes_direct(address):
            self._read(sock, server, address, port)
        else:
            relay(sock, server)

    def _read(self, sock: socket.socket, server: socket.socket, address: str, port: int) -> None:
        """Let a module read a connection; where that cannot be, its bytes go by."""
        # They bring all of the modules' interface, which few programs need.
        from alg.registry import BrokenModule
        from gateway.client.engine.reader import Reader, module_for

        def bind() -> Listening:
            return listen(self._chain, self._names.host_of(address), port, self._timeout)

        def trace(text: str) -> None:
            self._messages.trace(f"{address} port {port}: {text}")

        name, keys = READ[port]
        try:
            module = module_for(name, keys, Endpoint.of(*sock.getpeername()[:2]), Endpoint.of(address, port))
        except (BrokenModule, OSError) as error:
            self._messages.once(f"connections to port {port} are not read: {error}")
            relay(sock, server)
            return
        Reader(module, bind, self._space.inward, trace).run(sock, server)

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
                association = _Association(self._space, key)
                try:
                    thread(association.run, self._open)
                except BlockingIOError:
                    continue
                self._associations[key] = association
            try:
                host = target[0] if self._goes_direct(target[0]) else self._names.host_of(target[0])
            except OSError:
                continue
            association.send(data, (host, target[1]), target)

    def _open(self) -> Datagrams:
        try:
            return datagrams(self._chain, self._timeout)
        except ProxyError as error:
            self._messages.once(f"no datagrams: {error}")
            raise

    def _sweep(self) -> None:
        """An association ends with the program's socket."""
        while True:
            time.sleep(SWEEP)
            known = list(self._associations.items())  # before the look, which misses sockets that are made meanwhile
            there = self._space.open_ports()
            for key, association in known:
                if association.ended or key[1] not in there:
                    association.close()
                    if self._associations[key] is association:
                        del self._associations[key]


class _Association:
    """Carries the datagrams of one socket of the program."""

    def __init__(self, space: Namespace, client: Address) -> None:
        self.ended = False
        self._space = space
        self._client = client
        self._udp: Datagrams | None = None
        self._waiting: list[tuple[bytes, Address]] = []
        # What the proxy calls them: what the program calls them. The ones that were written to last.
        self._targets: OrderedDict[Address, Address] = OrderedDict()
        self._answering: OrderedDict[Address, socket.socket] = OrderedDict()
        self._lock = threading.Lock()

    def send(self, data: bytes, host: Address, target: Address) -> None:
        with self._lock:
            self._targets[host] = target
            self._targets.move_to_end(host)
            if len(self._targets) > MOST_TARGETS:
                self._targets.popitem(last=False)
            if self._udp is None:
                if len(self._waiting) < 64:
                    self._waiting.append((data, host))
                return
        with contextlib.suppress(OSError, ValueError):
            self._udp.sendto(data, host)

    def run(self, open_: Callable[[], Datagrams]) -> None:
        """Carry datagrams until the proxy or the program ends the association."""
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
                with contextlib.suppress(OSError):
                    self._answer(data, source)
        except OSError:
            pass
        finally:
            self.close()
            if self._udp is not None:
                self._udp.close()

    def _answer(self, data: bytes, source: Address) -> None:
        """Hand a datagram to the program, from where it expects it. OSError."""
        with self._lock:
            target = self._known(source)
            if target is None or self.ended:
                return
            if target not in self._answering:
                self._answering[target] = self._space.answering(*target)
                if len(self._answering) > MOST_ANSWERING:
                    self._answering.popitem(last=False)[1].close()
            self._answering.move_to_end(target)
            self._answering[target].sendto(data, self._client)

    def _known(self, source: Address) -> Address | None:
        """Return the address by which the program knows the host that has answered. None: the program has not sent to
        any host of that kind."""
        if source in self._targets:
            return self._targets[source]
        named = [target for host, target in self._targets.items() if host[1] == source[1] and host != target]
        return named[0] if len(named) == 1 else None

    def close(self) -> None:
        self.ended = True
        with self._lock:
            if self._udp is not None:
                with contextlib.suppress(OSError):
                    self._udp.end()
            for sock in self._answering.values():
                sock.close()
            self._answering.clear()


def _spare() -> int | None:
    """Open a descriptor that is kept for the moment when no others are left. None: none is left already."""
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _refuse(listener: socket.socket) -> None:
    """Reset the connection that waits next: it would wait for others to end, which may wait for it."""
    with contextlib.suppress(OSError):
        reset(listener.accept()[0])


def _original(sock: socket.socket) -> Address:
    """Return the destination of a redirected connection."""
    if sock.family == socket.AF_INET6:
        port, host = struct.unpack("!2xH4x16s4x", sock.getsockopt(kernel.SOL_IPV6, kernel.SO_ORIGINAL_DST, 28))
        return socket.inet_ntop(socket.AF_INET6, host), port
    port, host = struct.unpack("!2xH4s8x", sock.getsockopt(socket.IPPROTO_IP, kernel.SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(host), port


def _target(ancillary: Sequence[tuple[int, int, bytes]]) -> Address | None:
    """Return the destination of a datagram, from its ancillary data."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == kernel.IP_RECVORIGDSTADDR:
            port, host = struct.unpack_from("!2xH4s", data)
            return socket.inet_ntoa(host), port
        if level == kernel.SOL_IPV6 and kind == kernel.IPV6_RECVORIGDSTADDR:
            port, host = struct.unpack_from("!2xH4x16s", data)
            return socket.inet_ntop(socket.AF_INET6, host), port
    return None

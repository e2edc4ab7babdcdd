"""Runs a program whose connections this process makes: each connect waits until the proxy has connected the program's
own socket; after that no process is in between. For systems where no namespace can be made."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alg.address import Address as IpAddress
from alg.socks.errors import ProxyError
from gateway.client.blocking import MAPPED, Address, Datagrams, connect_socket, datagrams
from gateway.client.engine import kernel, notify
from gateway.client.engine.messages import Messages, thread
from gateway.client.engine.names import Names, serve_datagrams, serve_stream
from gateway.client.engine.outcome import NOT_EXECUTABLE, NOT_FOUND, NoEngine
from gateway.client.proxy import Chain

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

INWARD_TIMEOUT = 2.0  # seconds for the program to accept
SWEEP = 1.0  # seconds between two looks for sockets that are gone
MOST_ASSOCIATIONS = 256
MOST_WAITING = 1024  # connections that are being made
MOST_PEERS = 65536  # connections whose target is remembered
LARGEST_ADDRESS = 128  # struct sockaddr_storage
MOST_MESSAGES = 1024  # of one sendmmsg: the kernel takes no more (UIO_MAXIOV)
MSG_FASTOPEN = 0x20000000  # <linux/socket.h>
_MMSGHDR = 64
_SIZES = {socket.AF_INET: 16, socket.AF_INET6: 28}  # of struct sockaddr_in, and sockaddr_in6
_STREAMS = ((socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_STREAM, kernel.IPPROTO_MPTCP))
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
# Who would ask for names outside: the resolver then asks the servers of resolv.conf.
_NAME_SERVICES = (b"/run/nscd/", b"/var/run/nscd/", b"/run/systemd/resolve/", b"/run/avahi-daemon/")


class Program:
    """A program that waits with its connections for this process."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the program; it waits for `begin` before it does anything. Raises NoEngine. Must be called while the
        process has one thread."""
        reading, writing = os.pipe()
        wait, go = os.pipe()
        notify.adopt_orphans()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os.close(go)
            _execute(writing, wait, command)
        os.close(writing)
        os.close(wait)
        self._go = go
        message = os.read(reading, 256)
        os.close(reading)
        try:
            if message[:1] != b"R":
                raise NoEngine(message[1:].decode() or "the child has ended")
            self.listener = notify.NotifyListener(notify.descriptor_of(self.pid, struct.unpack("i", message[1:])[0]))
        except (OSError, NoEngine) as error:
            os.close(go)
            os.waitpid(self.pid, 0)
            raise NoEngine(str(error)) from None

    def begin(self) -> None:
        """Let the program run."""
        os.write(self._go, b"R")
        os.close(self._go)

    def inward(self, _source: Address, target: Address) -> socket.socket:
        """A connection to one of the program's ports, which are this host's. OSError."""
        sock = socket.create_connection(target, INWARD_TIMEOUT)
        sock.settimeout(None)
        return sock

    def wait(self) -> int:
        """Wait for the program to end. Returns its exit code, or 128 and the number of the signal that ended it."""
        while True:
            pid, status = os.wait()  # orphans of it end here too
            if pid == self.pid:
                return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _execute(writing: int, wait: int, command: Sequence[str]) -> None:
    """The child: never returns."""
    try:
        kernel.die_with_parent()
        try:
            listener = notify.install()
        except OSError as error:
            os.write(writing, b"F" + (error.strerror or str(error)).encode()[:200])
            os._exit(1)
        os.set_inheritable(listener, False)
        os.write(writing, b"R" + struct.pack("i", listener))
        os.close(writing)
        if os.read(wait, 1) != b"R":
            os._exit(1)
        os.close(wait)
        os.close(listener)  # else it would hold its own calls back
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"algate exec: {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)
    finally:
        os._exit(1)


class Target(NamedTuple):
    """The destination of a call. `ip`: its address, where an IPv4-mapped IPv6 address counts as IPv4."""

    family: int
    ip: IpAddress
    port: int


def parse_target(raw: bytes) -> Target | None:
    """Read a struct sockaddr. Returns None if it is not a whole Internet address."""
    if len(raw) < 2:
        return None
    family = struct.unpack_from("=H", raw)[0]
    if family == socket.AF_INET and len(raw) >= 8:
        return Target(family, ipaddress.IPv4Address(raw[4:8]), int.from_bytes(raw[2:4], "big"))
    if family == socket.AF_INET6 and len(raw) >= 24:
        ip = ipaddress.IPv6Address(raw[8:24])
        return Target(family, ip.ipv4_mapped or ip, int.from_bytes(raw[2:4], "big"))
    return None


class Watcher:
    """Decides on the calls of a program. Each connection of it has a thread until it is made."""

    def __init__(
        self, program: Program, chain: Chain, names: Names, direct: Networks, timeout: float, messages: Messages
    ) -> None:
        self._listener = program.listener
        self._chain = chain
        self._names = names
        self._direct = direct
        self._timeout = timeout
        self._messages = messages
        self._associations: dict[tuple[int, int], _Association] = {}  # by the program's socket: family and port
        self._peers: OrderedDict[bytes, bytes] = (
            OrderedDict()
        )  # by the socket: where the program believes to be connected
        self._room = threading.Semaphore(MOST_WAITING)
        self._servers = _name_servers()
        self._datagrams_of_names, self._streams_of_names = _listen_for_names()

    def start(self) -> None:
        """Begin to decide, in threads."""
        for sock in self._datagrams_of_names.values():
            thread(serve_datagrams, self._names, sock)
        for sock in self._streams_of_names.values():
            thread(self._accept_names, sock)
        thread(self._watch)
        thread(self._sweep)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._listener.fd, select.POLLIN)
        while True:
            if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll()):
                return  # nobody is left
            try:
                call = self._listener.receive()
            except OSError:
                return
            if call is None:
                continue
            try:
                self._decide(call)
            except OSError as error:
                if isinstance(error, PermissionError):
                    self._messages.once("a process that lets nobody look into it (PR_SET_DUMPABLE) connects nowhere")
                self._listener.answer(call, error.errno or errno.EIO)
            except Exception as error:  # a call that nobody answers waits for ever, and all after it
                self._messages.once(f"a call that was not understood: {error!r}")
                self._listener.answer(call, errno.EINVAL)

    def _decide(self, call: notify.WaitingCall) -> None:
        assert notify.MACHINE is not None
        if call.number == notify.MACHINE.connect:
            self._on_connect(call)
        elif call.number == notify.MACHINE.getpeername:
            self._on_getpeername(call)
        elif call.number == notify.MACHINE.getsockname:
            self._on_getsockname(call)
        elif all(self._may_go(target) for target in self._targets(call)):
            self._listener.let_pass(call)
        elif call.arguments[2 if call.number == notify.MACHINE.sendmsg else 3] & MSG_FASTOPEN:
            self._listener.answer(call, errno.EOPNOTSUPP)  # programs connect then
        else:
            self._messages.once("datagrams of a socket that is not connected are refused")
            self._listener.answer(call, errno.ENETUNREACH)

    def _on_connect(self, call: notify.WaitingCall) -> None:
        descriptor, at, size = call.arguments[:3]
        raw = notify.memory_of(call.thread, at, min(size, LARGEST_ADDRESS))
        if not self._listener.still_waits(call):
            return
        if raw[:2] == struct.pack("=H", socket.AF_UNIX):
            if raw[2:].startswith(_NAME_SERVICES):
                self._listener.answer(call, errno.ECONNREFUSED)
            else:
                self._listener.let_pass(call)
            return
        target = parse_target(raw)
        if target is None or size > LARGEST_ADDRESS or (target.port != 53 and self._may_go(target)):
            self._listener.let_pass(call)
            return
        if not self._room.acquire(blocking=False):
            raise OSError(errno.EADDRNOTAVAIL, "too many connections at once")
        try:
            thread(self._connect, call, descriptor, target, raw)
        except BlockingIOError:
            self._room.release()
            raise

    def _on_getpeername(self, call: notify.WaitingCall) -> None:
        """Say what the program has asked for, and not the proxy: FTP's EPSV leads to the host of the control
        connection."""
        with socket.socket(fileno=notify.descriptor_of(call.thread, call.arguments[0])) as sock:
            peer = self._peers.get(notify.cookie_of(sock))
        if peer is None:
            self._listener.let_pass(call)
        else:
            self._tell_address(call, peer)

    def _on_getsockname(self, call: notify.WaitingCall) -> None:
        """Say no address, and the port, where a socket has been replaced by one of another family: programs bind their
        next one to the same address (lftp, for FTP's data), and know one family only."""
        with socket.socket(fileno=notify.descriptor_of(call.thread, call.arguments[0])) as sock:
            peer = self._peers.get(notify.cookie_of(sock))
            if peer is None or peer.startswith(struct.pack("=H", sock.family)):
                self._listener.let_pass(call)
                return
            port: int = sock.getsockname()[1]
        self._tell_address(call, peer[:2] + port.to_bytes(2, "big") + bytes(len(peer) - 4))

    def _tell_address(self, call: notify.WaitingCall, raw: bytes) -> None:
        """Answer a call that asks for an address (at its second argument, with its size at the third)."""
        at, size_at = call.arguments[1:3]
        (room,) = struct.unpack("=i", notify.memory_of(call.thread, size_at, 4))
        if not self._listener.still_waits(call):
            return
        notify.write_memory(call.thread, at, raw[: max(0, room)])
        notify.write_memory(call.thread, size_at, struct.pack("=i", len(raw)))
        self._listener.answer(call)

    def _targets(self, call: notify.WaitingCall) -> list[Target]:
        """The addresses to which a call sends."""
        assert notify.MACHINE is not None
        if call.number == notify.MACHINE.sendto:
            places = [(call.arguments[4], call.arguments[5])]
        else:
            count = min(call.arguments[2], MOST_MESSAGES) if call.number == notify.MACHINE.sendmmsg else 1
            heads = notify.memory_of(call.thread, call.arguments[1], count * _MMSGHDR if count > 1 else 12)
            places = [struct.unpack_from("=QI", heads, _MMSGHDR * number) for number in range(count)]
        raws = [notify.memory_of(call.thread, at, min(size, LARGEST_ADDRESS)) for at, size in places if at]
        return [target for raw in raws if (target := parse_target(raw)) is not None]

    def _may_go(self, target: Target) -> bool:
        """Whether a call goes its own way: on this host, or to a network that is reached directly."""
        return target.ip.is_loopback or any(
            target.ip in network for network in self._direct if network.version == target.ip.version
        )

    def _connect(self, call: notify.WaitingCall, descriptor: int, target: Target, raw: bytes) -> None:
        """Connect the program's socket, and tell it so, or the error."""
        try:
            with socket.socket(fileno=notify.descriptor_of(call.thread, descriptor)) as sock:
                if not self._listener.still_waits(call):
                    return
                blocking = os.get_blocking(sock.fileno())
                try:
                    if (sock.type, sock.proto) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP):
                        self._connect_datagrams(sock, target)
                        self._remember(sock, raw)
                    elif (sock.type, sock.proto) in _STREAMS:
                        self._connect_stream(call, descriptor, sock, target, raw)
                    else:
                        raise OSError(errno.EAFNOSUPPORT, "no socket of the Internet")
                finally:
                    os.set_blocking(sock.fileno(), blocking)
        except OSError as error:
            self._messages.trace(f"{target.ip} port {target.port}: {error}")
            self._listener.answer(call, error.errno or errno.ECONNREFUSED)
        else:
            self._messages.trace(f"{target.ip} port {target.port}: connected")
            self._listener.answer(call)
        finally:
            self._room.release()

    def _connect_stream(
        self, call: notify.WaitingCall, descriptor: int, sock: socket.socket, target: Target, raw: bytes
    ) -> None:
        if _is_connected(sock):
            raise OSError(errno.EISCONN, "it is connected already")
        blocking = os.get_blocking(sock.fileno())
        if self._is_name_server(target):
            sock.setblocking(True)
            sock.connect(self._streams_of_names[target.family].getsockname())
            return
        host = self._names.host_of(str(target.ip))
        first = self._chain.proxies[0]
        if any(proxy.tls or proxy.gssapi for proxy in self._chain.proxies) or not _reaches(sock, first.host):
            # Its bytes are not the program's own, or the proxy is of another family: it gets another socket, which is
            # of the same family where that can be.
            made = socket.socket(sock.family, socket.SOCK_STREAM)
            try:
                connect_socket(made, self._chain, host, target.port, self._timeout)
                os.set_blocking(made.fileno(), blocking)
                self._remember(made, raw)
                closes = notify.closes_on_exec(call.thread, descriptor)
                self._listener.replace(call, descriptor, made.fileno(), closes)
            finally:
                made.close()
            return
        try:
            connect_socket(sock, self._chain, host, target.port, self._timeout)
        except OSError:
            with contextlib.suppress(OSError):  # it leads to the proxy, and may not lead there any more
                kernel.disconnect(sock)
            raise
        self._remember(sock, raw)

    def _remember(self, sock: socket.socket, raw: bytes) -> None:
        size = _SIZES[struct.unpack_from("=H", raw)[0]]
        self._peers[notify.cookie_of(sock)] = raw[:size].ljust(size, b"\0")  # as the kernel would tell it
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)

    def _connect_datagrams(self, sock: socket.socket, target: Target) -> None:
        if self._is_name_server(target):
            sock.connect(self._datagrams_of_names[target.family].getsockname())
            return
        if target.ip.is_loopback:
            sock.connect((str(target.ip), target.port))
            return
        if len(self._associations) >= MOST_ASSOCIATIONS:
            raise OSError(errno.ENOBUFS, "too many associations")
        association = _Association(self._names.host_of(str(target.ip)), target.port, target.family)
        try:
            sock.connect(association.relay.getsockname())
            key = target.family, sock.getsockname()[1]
        except OSError:
            association.close()
            raise
        before, self._associations[key] = self._associations.get(key), association
        if before is not None:
            before.close()
        try:
            thread(association.run, self._open)
        except BlockingIOError:
            association.close()
            raise

    def _is_name_server(self, target: Target) -> bool:
        return target.port == 53 and (target.ip.is_loopback or str(target.ip) in self._servers)

    def _open(self) -> Datagrams:
        try:
            return datagrams(self._chain, self._timeout)
        except ProxyError as error:
            self._messages.once(f"no datagrams: {error}")
            raise

    def _accept_names(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                time.sleep(SWEEP)  # no descriptors
                continue
            try:
                thread(self._stream_of_names, sock)
            except BlockingIOError:
                sock.close()

    def _stream_of_names(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve_stream(self._names, sock, self._timeout)

    def _sweep(self) -> None:
        """An association ends with the program's socket."""
        while True:
            time.sleep(SWEEP)
            known = list(self._associations.items())  # before the look, which misses sockets that are made meanwhile
            there = {socket.AF_INET: _ports("udp"), socket.AF_INET6: _ports("udp6")}
            for key, association in known:
                if association.ended or key[1] not in there[socket.AddressFamily(key[0])]:
                    association.close()
                    if self._associations[key] is association:
                        del self._associations[key]


class _Association:
    """The datagrams of one connected socket of the program, which is connected to `relay` in its place. There is an
    association at the proxy from the first datagram on: programs connect sockets to learn their own address."""

    def __init__(self, host: str, port: int, family: int) -> None:
        self.ended = False
        self._target: Address = (host, port)
        self._udp: Datagrams | None = None
        self._lock = threading.Lock()
        self.relay = socket.socket(family, socket.SOCK_DGRAM)
        self.relay.bind((_LOOPBACK[socket.AddressFamily(family)], 0))

    def run(self, open_: Callable[[], Datagrams]) -> None:
        """Carry datagrams until the proxy or the program ends it."""
        try:
            data, program = self.relay.recvfrom(65535)
            udp = open_()
            with self._lock:
                if self.ended:
                    udp.close()
                    return
                self._udp = udp
            thread(self._back, udp, program)
            source = program
            while True:  # `close` ends it
                if source == program:
                    with contextlib.suppress(ValueError):
                        udp.sendto(data, self._target)
                data, source = self.relay.recvfrom(65535)
        except OSError:
            pass
        finally:
            self.close()

    def _back(self, udp: Datagrams, program: Any) -> None:
        try:
            while not self.ended:
                data, source = udp.recvfrom()
                if source[1] == self._target[1]:  # the proxy lets in whom was written to; a name has an address there
                    self.relay.sendto(data, program)
        except OSError:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
            with contextlib.suppress(OSError):
                self.relay.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self.relay.close()
            if self._udp is not None:
                with contextlib.suppress(OSError):
                    self._udp.end()
                self._udp.close()


def _listen_for_names() -> tuple[dict[int, socket.socket], dict[int, socket.socket]]:
    """Sockets of a name server on this host, by family: for datagrams and for streams."""
    found: tuple[dict[int, socket.socket], dict[int, socket.socket]] = ({}, {})
    for family, host in _LOOPBACK.items():
        for kind, sockets in zip((socket.SOCK_DGRAM, socket.SOCK_STREAM), found, strict=True):
            sock = socket.socket(family, kind)
            try:
                sock.bind((host, 0))
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
            except OSError:  # this host has no IPv6
                sock.close()
                continue
            sockets[family] = sock
    return found


def _name_servers() -> frozenset[str]:
    """The servers of resolv.conf."""
    try:
        with open("/etc/resolv.conf") as file:
            lines = [line.split() for line in file]
    except OSError:
        return frozenset()
    return frozenset(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver")


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _reaches(sock: socket.socket, proxy: str) -> bool:
    """Whether a socket can be connected to the proxy: it is of its family, or of IPv6, which takes addresses of IPv4 as
    well, unless it is bound to one of its own."""
    try:
        if socket.getaddrinfo(proxy, None, sock.family, socket.SOCK_STREAM):
            return True
    except OSError:
        pass
    if sock.family != socket.AF_INET6:
        return False
    own = str(sock.getsockname()[0])
    return own == "::" or own.startswith(MAPPED)


def _ports(name: str) -> set[int]:
    with contextlib.suppress(OSError), open(f"/proc/self/net/{name}") as file:
        return {int(line.split()[1].rpartition(":")[2], 16) for line in list(file)[1:]}
    return set()

"""Listening TCP sockets, made by the supervisor, because workers have no right to, and a replaced worker finds its
backlog."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

from alg.address import Endpoint
from gateway.config.schema import Config, parse_endpoint
from gateway.model.errors import AlgateError
from gateway.observe.log import get_logger

BACKLOG = 4096
LINGER = 0.5  # seconds in which a connection that the kernel has answered comes to the backlog
TIME_WAIT = 65.0  # seconds that the kernel keeps an ended connection (TCP_TIMEWAIT_LEN), and some more
_POLL = 0.25  # seconds between two attempts to bind
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}  # <linux/in.h>, <linux/in6.h>

log = get_logger()

ListenerKind = Literal["socks", "tls", "transparent"]


class ListenPlace(NamedTuple):
    """An address at which one of the fronts listens."""

    kind: ListenerKind
    endpoint: Endpoint


def places(config: Config) -> dict[ListenPlace, str]:
    """Return where a configuration wants listeners, with the key that says so. Redirected connections come to all
    addresses, because REDIRECT chooses the address of the interface."""
    found = {
        ListenPlace("tls" if ".tls." in key else "socks", endpoint): key
        for key, endpoint in config.socks_listeners.items()
    }
    if config.transparent_enabled:
        for host in ("0.0.0.0", "::"):
            found[ListenPlace("transparent", Endpoint(host, config.transparent.port))] = "transparent.port"
    return found


class Listeners:
    """The listening sockets of all workers: each worker has its own at every place (SO_REUSEPORT).

    `inherited`: those of an earlier version, distributed over the workers of this one.
    """

    def __init__(self, workers: int, inherited: Iterable[tuple[ListenPlace, socket.socket]] = ()) -> None:
        self._sets: list[dict[ListenPlace, list[socket.socket]]] = [{} for _ in range(workers)]
        self._left_out: frozenset[ListenPlace] = frozenset()
        self._absent: set[ListenPlace] = set()
        numbers: Counter[ListenPlace] = Counter()
        for place, sock in inherited:
            self._sets[numbers[place] % workers].setdefault(place, []).append(sock)
            numbers[place] += 1

    def places(self) -> set[ListenPlace]:
        """Return the addresses at which they listen."""
        return {place for sockets in self._sets for place in sockets}

    def look(self) -> None:
        """Log which listeners' addresses are missing, or have appeared. Call it now and then."""
        absent = {place for place in self.places() if not is_there(place.endpoint)}
        for place in absent - self._absent:
            log.warning("listen.absent", address=str(place.endpoint), hint="no interface has this address yet")
        for place in (self._absent - absent) & self.places():
            log.info("listen.present", address=str(place.endpoint))
        self._absent = absent

    def all(self) -> list[tuple[ListenPlace, int]]:
        """Return every socket, for a supervisor that takes over."""
        sets = [[(place, sock.fileno()) for place, some in sockets.items() for sock in some] for sockets in self._sets]
        return list(itertools.chain.from_iterable(sets))

    def open(self, wanted: Mapping[ListenPlace, str], patience: float = 0.0) -> None:
        """Bind for each worker at these places, where it has no socket yet; `listen` must be called afterwards. Raises
        AlgateError, which names the key and address, and then has made none.

        `patience`: seconds to wait for ports that only connections of this host's own still have.
        """
        made: list[tuple[int, ListenPlace, socket.socket]] = []
        try:
            for index, sockets in enumerate(self._sets):
                for place, key in wanted.items():
                    if place not in sockets:
                        made.append((index, place, _bound(key, place.endpoint, patience=patience)))
        except AlgateError:
            _close(sock for _, _, sock in made)
            raise
        for index, place, sock in made:
            self._sets[index][place] = [sock]

    def listen(self) -> None:
        """Let all sockets that were opened accept connections. Raises AlgateError."""
        for place, fd in self.all():
            with socket.socket(fileno=os.dup(fd)) as sock:
                try:
                    sock.listen(BACKLOG)
                except OSError as error:
                    raise AlgateError(f"{place.kind}: cannot listen on {place.endpoint}: {error.strerror}") from error

    def leave_out(self, places: Collection[ListenPlace]) -> None:
        """Leave these places out of `fds`, because they are about to be closed."""
        self._left_out = frozenset(places)

    def fds(self, worker: int, kind: ListenerKind) -> list[int]:
        """Return the descriptors of one worker (by number) at the places of a kind."""
        sets = self._sets[worker].items()
        chosen = [some for place, some in sets if place.kind == kind and place not in self._left_out]
        return [sock.fileno() for sock in itertools.chain.from_iterable(chosen)]

    def refuse(self, places: Collection[ListenPlace]) -> None:
        """Let no further connections begin at these places. Those under way reach the backlog, within LINGER."""
        for sockets in self._sets:
            for place in places:
                for sock in sockets.get(place, []):
                    _drop_new(sock)

    def discard(self, places: Collection[ListenPlace]) -> None:
        """Stop listening at these places, in every process. What is in the backlog is reset."""
        for sockets in self._sets:
            for place in places:
                for sock in sockets.pop(place, []):
                    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        sock.shutdown(socket.SHUT_RDWR)
                    sock.close()

    def close(self) -> None:
        """Close our own descriptors. Other processes that have them go on."""
        for sockets in self._sets:
            _close(itertools.chain.from_iterable(sockets.values()))


def is_there(endpoint: Endpoint) -> bool:
    """Whether an address is one of this host's at this moment."""
    with socket.socket(socket.AF_INET6 if endpoint.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((endpoint.host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _drop_new(listener: socket.socket) -> None:
    """Let the kernel drop SYNs, but not the ACK of a client whose SYN was answered, so that no accepted client is
    reset.

    shutdown(2) and close(2) reset what is in the backlog; there is no other way to stop a listener.
    """
    # ldb [13]; and #SYN|ACK; jeq #SYN: ret #0; else ret #-1   (the filter sees the TCP header first)
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF))
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    except PermissionError:  # some kernels want CAP_NET_ADMIN for it, as in a container: then the backlog is reset
        pass


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def listen_console(config: Config, patience: float = 0.0) -> socket.socket:
    """Return the console's listening socket. Raises AlgateError, also if another instance has one there."""
    listener = _bound("console.listen", parse_endpoint(config.console.listen), shared=False, patience=patience)
    listener.listen(BACKLOG)
    return listener


def _bound(key: str, endpoint: Endpoint, shared: bool = True, patience: float = 0.0) -> socket.socket:
    """Return a bound socket. If a connection of this host that has ended still has the port, it is free again within a
    minute (TIME_WAIT); then wait for it."""
    until = time.monotonic() + patience
    said = False
    while True:
        try:
            return _bind(key, endpoint, shared)
        except AlgateError as error:
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not in_use or time.monotonic() >= until or _somebody_listens(endpoint.port):
                raise
        if not said:
            said = True
            log.warning(
                "listen.waits",
                address=str(endpoint),
                hint=f"a connection of this host's own has the port, for a minute at most: "
                f"sysctl -w net.ipv4.ip_local_reserved_ports={endpoint.port}",
            )
        time.sleep(_POLL)


def is_in_use(endpoint: Endpoint) -> bool:
    """Whether another program listens at this port of this address now."""
    try:
        _bind("", endpoint, shared=False).close()
    except AlgateError as error:
        in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        return in_use and _somebody_listens(endpoint.port)
    return False


def _somebody_listens(port: int) -> bool:
    """Whether a TCP socket of any address listens at this port."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        if any(row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port for row in rows):
            return True
    return False


def _bind(key: str, endpoint: Endpoint, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if endpoint.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((endpoint.host, endpoint.port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            # At boot an interface may get its address after us; connections come when it is there.
            listener.setsockopt(*_FREEBIND[endpoint.version], 1)
            listener.bind((endpoint.host, endpoint.port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AlgateError(f"{key}: cannot listen on {endpoint}: {error.strerror}") from error
    return listener

"""UDP sockets of an association: bound to one address, non-blocking, watched by libev."""

from __future__ import annotations

import _socket
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from gevent import get_hub

from alg.address import Address
from gateway.flow.dial import DialError
from gateway.model.requests import Lease
from gateway.net.addresses import PublicAddress, source_towards
from gateway.net.libev import EV_READ
from gateway.net.turns import turns

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

RECEIVE_BUFFER = 1 << 20  # bytes asked for; the kernel's limit may be lower
MAX_ROUTES = 1024  # targets of an association, and peers that may answer; the one used least recently makes room

Host = tuple[str, int]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Outside:
    """A socket towards the outside, its pinhole, and `public`, the endpoint at which the world finds it.

    `hosts`: addresses that may send to it from whichever port."""

    __slots__ = ("hosts", "lease", "public", "sock", "watcher")

    def __init__(self, lease: Lease, sock: _socket.socket, public: PublicAddress) -> None:
        self.lease = lease
        self.sock = sock
        self.public = public
        self.hosts: dict[str, None] = {}
        self.watcher: _IoWatcher = get_hub().loop.io(sock.fileno(), EV_READ)

    def let_in(self, hosts: Iterable[str]) -> None:
        """Let these addresses send to the socket from now on. If there are too many, the oldest one is removed."""
        for host in hosts:
            self.hosts.pop(host, None)
            self.hosts[host] = None
        bound(self.hosts)


def bound(table: dict[Key, Value]) -> None:
    """Remove the oldest entry if there are too many."""
    if len(table) > MAX_ROUTES:
        del table[next(iter(table))]


def facing_address(address: Address) -> str:
    """Return the address of this host that faces `address`. Raises DialError."""
    facing = source_towards(str(address))
    if facing is None:
        raise DialError("network", f"there is no way to {address}")
    return facing


def bind_datagrams(host: str, port: int) -> _socket.socket:
    """Return a bound, non-blocking UDP socket. Raises OSError."""
    sock = _socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            name, _, scope = host.partition("%")
            sock.bind((name, port, 0, socket.if_nametoindex(scope) if scope else 0))
        else:
            sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def close_watched(watcher: _IoWatcher, sock: _socket.socket) -> None:
    """Close a socket, and its watcher before it."""
    turns().forget(watcher)
    watcher.stop()
    watcher.close()
    sock.close()

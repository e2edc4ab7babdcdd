"""UDP sockets of an association: bound to one address, non-blocking, watched by libev."""

from __future__ import annotations

import _socket
import socket
from typing import TYPE_CHECKING

from alg.address import Address
from gateway.flow.dial import DialError
from gateway.net.addresses import source_towards

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

RECEIVE_BUFFER = 1 << 20  # bytes asked for; the kernel's limit may be lower


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
    watcher.stop()
    watcher.close()
    sock.close()

"""The relayed connections as plain sockets."""

from __future__ import annotations

import _socket
import errno
import fcntl
import select
import struct
import termios
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SO_LINGER, SO_RCVBUF, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY
from typing import Protocol

from gevent.monkey import get_original

_poll = get_original("select", "poll")  # gevent's waits, which the hub may not


class RelaySocket(Protocol):
    """A connected stream socket of gevent or of the standard library."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def detach(self) -> int: ...


def take(sock: RelaySocket) -> _socket.socket:
    """Move the descriptor of `sock` into a plain socket object, without gevent's watchers and waits."""
    if type(sock) is _socket.socket:  # made for us: prepared, and not blocking
        return sock
    family = sock.family
    owned = _socket.socket(family, SOCK_STREAM, 0, fileno=sock.detach())
    owned.setblocking(False)
    if family in (AF_INET, AF_INET6):
        # What came as a segment goes on as one; an end that coalesces has done it before.
        _quietly_set(owned, IPPROTO_TCP, TCP_NODELAY, 1)
    return owned


def local_hosts(*socks: _socket.socket) -> tuple[str, ...]:
    """Return the addresses of this host that connections use; none for a closed one."""
    return tuple(str(sock.getsockname()[0]) for sock in socks if sock.fileno() >= 0)


def unacknowledged(sock: _socket.socket) -> int:
    """Return how many bytes the other end has not acknowledged yet."""
    count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return count


def has_urgent(sock: _socket.socket) -> bool:
    """Whether there is an urgent byte among what can be read of a connection, or announced by what came."""
    asked = _poll()
    asked.register(sock.fileno(), select.POLLPRI)
    return any(events & select.POLLPRI for _, events in asked.poll(0))


def narrow(sock: _socket.socket) -> None:
    """Limit the data on the way to this socket to 64 KiB from now on, by its receive window."""
    _quietly_set(sock, SOL_SOCKET, SO_RCVBUF, 32 * 1024)  # the kernel doubles it


def close_by_reset(sock: _socket.socket) -> None:
    """Make the following close a reset."""
    _quietly_set(sock, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))


def _quietly_set(sock: _socket.socket, level: int, option: int, value: int | bytes) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise

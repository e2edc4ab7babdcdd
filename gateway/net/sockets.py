"""Functions on TCP sockets that the whole gateway uses."""

from __future__ import annotations

import _socket
import ipaddress
import socket
import struct
import time

from alg.address import Endpoint

_LINGER_RESET = struct.pack("ii", 1, 0)
KEEPALIVE = 110.0  # seconds of silence: routers on the way may forget a connection after 4 minutes, or a little over 2
_KEEPALIVE_PROBES = 5
_TCPI_BYTES_ACKED = 120  # the offset in struct tcp_info of <linux/tcp.h>, with 8 bytes

_keepalive = KEEPALIVE


def abort(sock: _socket.socket) -> None:
    """Close with a reset, so that the peer learns at once that the connection has failed."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        pass  # closed already
    sock.close()


def prepare(sock: _socket.socket) -> None:
    """Set the options that every flow's socket has: no delay, keep-alive, and urgent data as bytes of the stream.

    Without SO_OOBINLINE the byte of an urgent mark (FTP's ABOR, RFC 959 4.1.3) would be lost.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    _keep_alive(sock)


def close_gently(sock: socket.socket, timeout: float) -> None:
    """Close so that what was sent arrives: end our direction, then wait for the peer's end for at most `timeout`
    seconds.

    Closing with unread bytes would be a reset, which may overtake the last reply.
    """
    until = time.monotonic() + timeout
    try:
        sock.settimeout(timeout)  # inside TLS the end is something to send, for which a peer may leave no room
        sock.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(4096):
                break
    except OSError:
        pass
    sock.close()


def keep_alive_after(seconds: float) -> None:
    """For connections that are prepared from now on: probe after this many seconds of silence, and then five times,
    each after half of that. 0: never."""
    global _keepalive
    _keepalive = seconds


def _keep_alive(sock: _socket.socket) -> None:
    """Turn keep-alive on, so that no router on the way forgets the connection, and a dead peer is found within
    minutes."""
    if _keepalive <= 0:
        return
    idle = max(1, round(_keepalive))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 2))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def endpoint(address: tuple[object, ...]) -> Endpoint:
    """Return the Endpoint of a socket address as getpeername() returns it. An IPv4-mapped IPv6 address becomes IPv4."""
    host, port = str(address[0]).partition("%")[0], address[1]
    assert isinstance(port, int)
    if host.startswith("::ffff:"):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        host = str(mapped) if mapped else host
    return Endpoint(host, port)


def error_of(sock: _socket.socket) -> int:
    """Return the errno with which an attempt to connect a TCP socket has ended; 0: the connection is there, or was. A
    server may have reset it already: what it has said before can be read, and the reset comes behind that."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_BYTES_ACKED + 8)
    if info[_TCPI_BYTES_ACKED:] != bytes(8):  # our SYN was one
        return 0
    code: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return code

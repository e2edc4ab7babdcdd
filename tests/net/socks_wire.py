"""SOCKS as bytes on a socket, for tests that look at each of them."""

from __future__ import annotations

import socket

GREETING = b"\5\1\0"


def request5(host: str, port: int, command: int = 1) -> bytes:
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        address = bytes([4 if ":" in host else 1]) + packed
    except OSError:
        address = bytes([3, len(host)]) + host.encode()
    return bytes([5, command, 0]) + address + port.to_bytes(2, "big")


def request4(host: str, port: int, command: int = 1) -> bytes:
    try:
        return bytes([4, command]) + port.to_bytes(2, "big") + socket.inet_aton(host) + b"me\0"
    except OSError:
        return bytes([4, command]) + port.to_bytes(2, "big") + b"\0\0\0\1me\0" + host.encode() + b"\0"


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ConnectionError(f"end of stream after {data!r}")
        data += chunk
    return data


def reply5(sock: socket.socket) -> tuple[int, str, int]:
    """Code and bound endpoint."""
    head = receive(sock, 4)
    assert head[0] == 5
    assert head[2] == 0
    family, size = (socket.AF_INET, 4) if head[3] == 1 else (socket.AF_INET6, 16)
    host = socket.inet_ntop(family, receive(sock, size))
    return head[1], host, int.from_bytes(receive(sock, 2), "big")


def reply4(sock: socket.socket) -> tuple[int, str, int]:
    """Code and bound endpoint."""
    reply = receive(sock, 8)
    assert reply[0] == 0
    return reply[1], socket.inet_ntoa(reply[4:]), int.from_bytes(reply[2:4], "big")


def ask5(sock: socket.socket, host: str, port: int, command: int = 1) -> tuple[int, str, int]:
    """Greeting, request, and the reply to it."""
    sock.sendall(GREETING)
    assert receive(sock, 2) == b"\5\0"
    sock.sendall(request5(host, port, command))
    return reply5(sock)


def datagram(host: str, port: int, data: bytes, fragment: int = 0) -> bytes:
    """A datagram as a client sends it to its association (RFC 1928 section 7)."""
    return bytes([0, 0, fragment]) + request5(host, port)[3:] + data


def undatagram(wire: bytes) -> tuple[str, int, bytes]:
    """Source and data of a datagram that an association sent."""
    assert wire[:3] == b"\0\0\0"
    family, size = (socket.AF_INET, 4) if wire[3] == 1 else (socket.AF_INET6, 16)
    return (
        socket.inet_ntop(family, wire[4 : 4 + size]),
        int.from_bytes(wire[4 + size : 6 + size], "big"),
        wire[6 + size :],
    )

"""Relayed connections over loopback for these tests, with gevent's own sockets: nothing is monkey-patched here."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from socket import AF_INET, IPPROTO_TCP, SO_LINGER, SO_RCVBUF, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY

from gevent import sleep
from gevent.event import AsyncResult
from gevent.socket import socket

from gateway.net.relay.half import RelayResult
from gateway.net.relay.splice import Relay, RelayHandle


def tcp_pair(buffers: int = 0) -> tuple[socket, socket]:
    """The two ends of a TCP connection over loopback, with small buffers if asked for."""
    with socket(AF_INET, SOCK_STREAM) as server:
        if buffers:
            server.setsockopt(SOL_SOCKET, SO_RCVBUF, buffers)
            server.setsockopt(SOL_SOCKET, SO_SNDBUF, buffers)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client = socket(AF_INET, SOCK_STREAM)
        if buffers:
            client.setsockopt(SOL_SOCKET, SO_RCVBUF, buffers)
            client.setsockopt(SOL_SOCKET, SO_SNDBUF, buffers)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
    for end in (client, accepted):
        end.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        end.settimeout(20)
    return client, accepted


@dataclass
class Joined:
    """A client and a server whose connections the gateway joined."""

    client: socket
    server: socket
    handle: RelayHandle
    done: AsyncResult[RelayResult]

    def result(self) -> RelayResult:
        result = self.done.get(timeout=20)
        assert result is not None
        return result

    def close(self) -> None:
        self.client.close()
        self.server.close()


def join(relay: Relay, buffers: int = 0) -> Joined:
    client, left = tcp_pair(buffers)
    server, right = tcp_pair(buffers)
    done: AsyncResult[RelayResult] = AsyncResult()
    return Joined(client, server, relay.start(left, right, done.set), done)


def read_all(sock: socket) -> bytes:
    """What comes until the end of the stream."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        assert part, f"the stream ended after {len(parts)} of {count} bytes"
        parts += part
    return bytes(parts)


def reset(sock: socket) -> None:
    """Close `sock` by a RST."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1


def settle() -> None:
    """Let the callbacks that are due run (gevent closes its sockets in one)."""
    for _ in range(3):
        sleep(0)

"""A SOCKS client of UDP ASSOCIATE that counts every byte, for tests in namespaces."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest

from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_IN4, ROUTER_IN6, Lab, Role
from tests.net.socks_wire import ask5, datagram, undatagram

UDP = 3
PORT = 5300
IDLE = 3.0
QUIET = 0.3  # seconds in which nothing may come, where a datagram takes less than a millisecond


def config(**socks: object) -> dict[str, dict[str, object]]:
    return {"socks": {"udp_idle_timeout": IDLE, **socks}, "process": {"workers": 1}, "pinhole": {"per_client": 8}}


def udp(lab: Lab, role: Role, host: str, port: int = 0) -> socket.socket:
    with lab.enter(role):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    sock.settimeout(5)
    return sock


@dataclass
class Client:
    """A control connection, the socket for datagrams, and where the gateway wants them."""

    control: socket.socket
    sock: socket.socket
    relay: tuple[str, int]

    def send(self, host: str, port: int, data: bytes, fragment: int = 0) -> None:
        self.sock.sendto(datagram(host, port, data, fragment), self.relay)

    def receive(self) -> tuple[str, int, bytes]:
        wire, sender = self.sock.recvfrom(65535)
        assert sender[:2] == self.relay
        return undatagram(wire)

    def close(self) -> None:
        self.control.close()
        self.sock.close()


def associate(lab: Lab, version: int = 4, hint: tuple[str, int] | None = None) -> Client:
    own, router = (CLIENT4, ROUTER_IN4) if version == 4 else (CLIENT6, ROUTER_IN6)
    control = lab.connect("inside", router, 1080)
    sock = udp(lab, "inside", own)
    code, host, port = ask5(control, *(hint or ("0.0.0.0", 0)), UDP)
    assert (code, host) == (0, router)  # the control connection's own address
    return Client(control, sock, (host, port))


def silent(sock: socket.socket) -> None:
    sock.settimeout(QUIET)
    with pytest.raises(TimeoutError):
        raise AssertionError(f"{sock.recvfrom(65535)} came")
    sock.settimeout(5)


def works(client: Client, server: socket.socket, text: bytes = b"question") -> tuple[str, int]:
    """There and back; the endpoint that the server saw."""
    host, port = server.getsockname()[:2]
    client.send(host, port, text)
    data, seen = server.recvfrom(65535)
    assert data == text
    server.sendto(b"answer to " + text, seen)
    assert client.receive() == (host, port, b"answer to " + text)
    return seen[0], seen[1]

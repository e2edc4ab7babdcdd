"""A UDP socket in a namespace of the lab."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role

PATIENCE = 15.0  # seconds for what has to come


class Udp:
    """A UDP socket of `role`, bound to an address of it; port 0: any."""

    def __init__(self, lab: Lab, role: Role, host: str, port: int = 0) -> None:
        with lab.enter(role):
            self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host, port))
        self.sock.settimeout(PATIENCE)

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self.sock.sendto(data, to)

    def receive(self) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, and from where it came."""
        data, source = self.sock.recvfrom(65535)
        return data, source[:2]

    def is_silent(self, seconds: float = 0.4) -> bool:
        """Whether nothing comes for so long."""
        self.sock.settimeout(seconds)
        try:
            self.sock.recvfrom(65535)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        return False


def goes_both_ways(near: socket.socket, far: socket.socket, public: tuple[str, int]) -> None:
    """AssertionError unless a datagram of `near` comes to `far` from `public`, and one to `public` comes to `near`."""
    near.sendto(b"out", far.getsockname())
    assert far.recvfrom(100) == (b"out", public)
    far.sendto(b"in", public)
    assert near.recvfrom(100) == (b"in", far.getsockname())

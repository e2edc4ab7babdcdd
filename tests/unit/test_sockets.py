"""gateway.net.sockets: what a socket of a flow gets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.net.sockets import KEEPALIVE, keep_alive_after, prepare


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    keep_alive_after(KEEPALIVE)


def idle(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)


def test_no_router_forgets_a_silent_connection() -> None:
    """The common time after which a NAT forgets is four minutes, the shortest that is met often a little over two."""
    with socket.socket() as sock:
        prepare(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert idle(sock) < 120
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) < 120


@pytest.mark.parametrize(("seconds", "expected"), [(30.0, 30), (0.2, 1), (600.0, 600)])
def test_it_is_a_key(seconds: float, expected: int) -> None:
    keep_alive_after(seconds)
    with socket.socket() as sock:
        prepare(sock)
        assert idle(sock) == expected


def test_none_at_all() -> None:
    keep_alive_after(0)
    with socket.socket() as sock:
        prepare(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0

"""A server that speaks and resets its connection at once: what it said comes, and then the reset, however late the
gateway looks. Everything of the server happens before the event loop runs."""

from __future__ import annotations

import _socket
import contextlib
import ipaddress
import socket as stdlib
import struct
from collections.abc import Iterator

import gevent
import pytest

from gateway.flow.dial import DialError, race
from gateway.flow.quick_dial import QuickDialer
from gateway.net.relay.poller import Watch
from gateway.net.relay.splice import Relay
from gateway.policy.decide import Policy, PolicyInForce

LOOPBACK = ipaddress.ip_address("127.0.0.1")


@pytest.fixture
def listener() -> Iterator[stdlib.socket]:
    with stdlib.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def speak_and_reset(listener: stdlib.socket, said: bytes) -> None:
    sock, _ = listener.accept()
    sock.sendall(said)
    sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("said", [b"said", b""])
def test_a_dial_without_a_greenlet(listener: stdlib.socket, said: bytes) -> None:
    relay = Relay(60.0, 60.0)
    results: list[_socket.socket | OSError] = []

    def done(result: _socket.socket | OSError, watch: Watch | None) -> None:
        results.append(result)
        if watch is not None:
            watch.forget(closing=False)

    dialer = QuickDialer(PolicyInForce(Policy([])), relay)
    dialer.start(LOOPBACK, listener.getsockname()[1], done)
    speak_and_reset(listener, said)
    with gevent.Timeout(5):
        while not results:
            gevent.sleep(0.001)
    (sock,) = results
    assert not isinstance(sock, OSError), sock
    if said:
        assert sock.recv(100) == said
    with pytest.raises(ConnectionResetError):
        sock.recv(100)
    sock.close()
    relay.close()


@pytest.mark.parametrize("said", [b"said", b""])
def test_a_dial_that_races(listener: stdlib.socket, said: bytes) -> None:
    port = listener.getsockname()[1]
    dialled = gevent.spawn(race, [LOOPBACK], port, 1e12, None)
    with gevent.Timeout(5):
        listener.setblocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):
                speak_and_reset(listener, said)
                break
            gevent.sleep(0)
    sock, _ = dialled.get(timeout=5)
    if said:
        assert sock.recv(100) == said
    with pytest.raises(ConnectionResetError):
        sock.recv(100)
    sock.close()


def test_one_that_is_not_there_is_refused(listener: stdlib.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises((DialError, ConnectionRefusedError)):
        race([LOOPBACK], port, 1e12, None)

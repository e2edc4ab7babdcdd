"""Flows that are copied, since their bytes are coded on the wire: the same ends and limits as the relay's."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import gevent
import gevent.socket as gsocket
import pytest
from gevent.event import AsyncResult

from gateway.net.relay.copy import CopyHandle, EncodedSocket
from gateway.net.relay.half import RelayResult
from gateway.net.relay.splice import Relay

KEY = 0x55


class Flipped(EncodedSocket):
    """Every byte is another one on the wire."""

    def __init__(self, plain: gsocket.socket) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())

    def recv(self, size: int, *args: int) -> bytes:
        return flip(super().recv(size, *args))

    def sendall(self, data: bytes, *args: int) -> None:  # type: ignore[override]
        super().sendall(flip(data), *args)


def flip(data: bytes) -> bytes:
    return data.translate(bytes(byte ^ KEY for byte in range(256)))


Pair = tuple[gsocket.socket, gsocket.socket, CopyHandle, "AsyncResult[RelayResult]"]


@pytest.fixture
def start() -> Iterator[Callable[..., Pair]]:
    """Starts a copied flow; the far ends of its client (flipped) and server."""
    opened: list[gsocket.socket] = []
    relays: list[Relay] = []

    def connection() -> tuple[gsocket.socket, gsocket.socket]:
        with gsocket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            far = gsocket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        far.settimeout(10)
        opened.append(far)
        return far, near

    def start(idle: float = 60, half_close: float = 60) -> Pair:
        relay = Relay(idle, half_close)
        relays.append(relay)
        (client, left), (server, right) = connection(), connection()
        result: AsyncResult[RelayResult] = AsyncResult()
        return client, server, CopyHandle(relay, Flipped(left), right, result.set), result

    yield start
    for sock in opened:
        sock.close()
    for relay in relays:
        relay.close()


def outcome(result: AsyncResult[RelayResult]) -> RelayResult:
    value = result.get(timeout=10)
    assert value is not None
    return value


def read_all(sock: gsocket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_reply_after_the_end_of_the_request_arrives(start: Callable[..., Pair]) -> None:
    """8 MiB up, then the end, then 1 MiB back."""
    client, server, handle, result = start()
    request, reply = bytes(range(256)) * 32768, b"reply" * 209715

    def send() -> None:
        client.sendall(flip(request))
        client.shutdown(gsocket.SHUT_WR)

    sending = gevent.spawn(send)
    assert read_all(server) == request
    sending.join()
    server.sendall(reply)
    server.close()
    assert flip(read_all(client)) == reply
    assert result.get(timeout=5) == RelayResult(len(request), len(reply), "eof")
    assert (handle.up, handle.down) == (len(request), len(reply))


def test_a_reset_is_passed_on(start: Callable[..., Pair]) -> None:
    client, server, _, result = start()
    server.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    with pytest.raises(ConnectionResetError):
        read_all(client)
    assert outcome(result).reason == "reset"
    assert outcome(result).side == "right"


@pytest.mark.parametrize("half", [False, True])
def test_a_silent_flow_ends(start: Callable[..., Pair], half: bool) -> None:
    client, _server, _, result = start(idle=60 if half else 1, half_close=1)
    if half:
        client.shutdown(gsocket.SHUT_WR)
    assert outcome(result).reason == ("half-closed" if half else "idle")


def test_an_abort_ends_it_once(start: Callable[..., Pair]) -> None:
    client, server, handle, result = start()
    handle.abort()
    handle.abort()
    assert outcome(result).reason == "aborted"
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_a_slow_reader_slows_the_sender_down(start: Callable[..., Pair]) -> None:
    client, _server, handle, result = start()
    sent = 0
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while sent < 64 * 1024 * 1024:
            sent += client.send(bytes(65536))
    assert sent < 64 * 1024 * 1024
    handle.abort()
    result.get(timeout=5)


def test_no_greenlet_is_left(start: Callable[..., Pair]) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())

    before = alive()
    for _ in range(20):
        _, _, handle, result = start()
        handle.abort()
        result.get(timeout=5)
    gevent.sleep(0)
    assert alive() <= before

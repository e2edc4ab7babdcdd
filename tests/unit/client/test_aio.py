"""The library with asyncio."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from gateway.client import ProxyError, aio
from tests.unit.client.scripted import CONNECT, GREETING, scripted


def test_open_connection() -> None:
    async def run(port: int) -> None:
        reader, writer = await aio.open_connection(f"127.0.0.1:{port}", "a.test", 80, timeout=5)
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"abc")
        assert await reader.readexactly(3) == b"ABC"
        writer.close()
        await writer.wait_closed()

    with scripted(GREETING, (CONNECT[0], CONNECT[1] + b"hello")) as proxy:
        asyncio.run(run(proxy.port))


def test_the_deadline() -> None:
    began = time.monotonic()
    with (
        scripted(GREETING, (CONNECT[0], b"\5\0\0\3\xff" + bytes(255)), dribble=0.05) as proxy,
        pytest.raises(TimeoutError) as caught,
    ):
        asyncio.run(aio.connect(f"127.0.0.1:{proxy.port}", "a.test", 80, 0.5))
    assert isinstance(caught.value, ProxyError)
    assert time.monotonic() - began < 4


def test_a_refusal() -> None:
    with scripted(GREETING, (CONNECT[0], b"\5\5\0")) as proxy, pytest.raises(ConnectionRefusedError):
        asyncio.run(aio.connect(f"127.0.0.1:{proxy.port}", "a.test", 80, 5))


def test_listen() -> None:
    first = (b"\5\2\0\1\xcb\0\x71\x09\0\x14", b"\5\0\0\1\xc0\0\2\1\x9c\x40")

    async def run(port: int) -> None:
        waiting = await aio.listen(f"127.0.0.1:{port}", "203.0.113.9", 20, 5)
        assert waiting.address == ("192.0.2.1", 40000)
        reader, writer, peer = await waiting.accept(5)
        assert peer == ("203.0.113.9", 20)
        writer.write(b"abc")
        assert await reader.readexactly(3) == b"ABC"
        writer.close()

    with scripted(GREETING, first, (b"", b"\5\0\0\1\xcb\0\x71\x09\0\x14")) as proxy:
        asyncio.run(run(proxy.port))


def test_names() -> None:
    with scripted(GREETING, (b"\5\xf0\0\3\6a.test\0\0", b"\5\0\0\1\xcb\0\x71\x09\0\0")) as proxy:
        assert asyncio.run(aio.resolve(f"127.0.0.1:{proxy.port}", "a.test", 5)) == "203.0.113.9"


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()
        self.ended = asyncio.Event()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.came.put_nowait((data, address))

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended.set()


def test_datagrams() -> None:
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))
    relay.setblocking(False)
    reply = b"\5\0\0\1\x7f\0\0\1" + relay.getsockname()[1].to_bytes(2, "big")

    async def run(port: int) -> None:
        transport, protocol = await aio.create_datagram_endpoint(_Protocol, f"127.0.0.1:{port}", 5)
        transport.sendto(b"question", ("192.0.2.9", 53))
        wire, client = await asyncio.get_running_loop().sock_recvfrom(relay, 100)
        assert wire == b"\0\0\0\1\xc0\0\2\x09\0\x35question"
        await asyncio.get_running_loop().sock_sendto(relay, wire.upper(), client)
        assert await asyncio.wait_for(protocol.came.get(), 5) == (b"QUESTION", ("192.0.2.9", 53))
        transport.close()
        await asyncio.wait_for(protocol.ended.wait(), 5)

    with scripted(GREETING, (b"\5\3\0\1\0\0\0\0\0\0", reply)) as proxy:
        asyncio.run(run(proxy.port))
    relay.close()

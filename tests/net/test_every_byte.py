"""Every byte arrives through a running gateway, whatever is said on a module's port."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import GREETING, request5

MESSAGE = b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: %d\r\n\r\n"


def through(lab: Lab, way: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A client's end and a server's end of a connection through the gateway."""
    with lab.listen("outside", SERVER4, port) as listener:
        if way == "transparent":
            client = lab.connect("inside", SERVER4, port)
        else:
            client = lab.connect("inside", ROUTER_IN4, 1080)
            client.sendall(GREETING)
            assert client.recv(2) == b"\5\0"
            client.sendall(request5(SERVER4, port))
        server, _ = listener.accept()
        if way == "socks":
            assert client.recv(10)[1] == 0
    for sock in (client, server):
        sock.settimeout(20)
    return client, server


def exchange(client: socket.socket, server: socket.socket, up: bytes, down: bytes, cut: int) -> tuple[bytes, bytes]:
    """Both say what they have, in pieces, and end their directions; what arrived at the server and at the client."""
    heard: dict[str, bytes] = {}

    def say(sock: socket.socket, data: bytes) -> None:
        for at in range(0, len(data), cut):
            sock.sendall(data[at : at + cut])
        sock.shutdown(socket.SHUT_WR)

    def hear(name: str, sock: socket.socket) -> None:
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        heard[name] = b"".join(parts)

    work: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (say, (client, up)), (say, (server, down)), (hear, ("server", server)), (hear, ("client", client)),
    ]  # fmt: skip
    threads = [threading.Thread(target=target, args=arguments) for target, arguments in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.close()
    server.close()
    return heard.get("server", b""), heard.get("client", b"")


def junk(size: int) -> bytes:
    return random.Random(size).randbytes(size)


STREAMS = {
    "junk": junk(20_000),
    "much junk": junk(200_000),
    "messages and then junk": MESSAGE % 0 * 60 + junk(100_000),
    "a message of 50 kB": MESSAGE % 50_000 + junk(50_000),
    "messages of 64 kB": (MESSAGE % 64_000 + junk(64_000)) * 3,
    "a message of 100 kB": MESSAGE % 100_000 + junk(100_000) + MESSAGE % 0,
    "a message that does not end": MESSAGE % 60_000 + junk(100),
    "lines": b"A\n" * 50_000,
    "commands": b"USER x\r\n" + b"NOOP\r\n" * 20_000,
    "a login and then no TLS": b"AUTH TLS\r\n" + junk(50_000),
}
ANSWERS = {"nothing": b"", "a greeting": b"220 here\r\n234 go\r\n" + junk(30_000), "junk": junk(150_000)}


@pytest.mark.parametrize("way", ["transparent", "socks"])
@pytest.mark.parametrize("port", [21, 5060])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("said", STREAMS)
def test_whatever_is_said(lab: Lab, gateway: Gateway, way: str, port: int, answer: str, said: str) -> None:
    client, server = through(lab, way, port)
    cut = 700 if len(said) % 2 else 1 << 20
    assert exchange(client, server, STREAMS[said], ANSWERS[answer], cut) == (STREAMS[said], ANSWERS[answer])


def test_a_data_connection_is_no_control_connection(lab: Lab, gateway: Gateway) -> None:
    """A passive data port that is 5060 by chance: the module that has announced it is not asked to read it."""
    with lab.listen("outside", SERVER4, 21) as listener:
        control = lab.connect("inside", SERVER4, 21)
        server, _ = listener.accept()
    with control, server:
        server.sendall(b"220 here\r\n")
        assert control.recv(100) == b"220 here\r\n"
        control.sendall(b"PASV\r\n")
        assert server.recv(100) == b"PASV\r\n"
        server.sendall(f"227 ({SERVER4.replace('.', ',')},{5060 // 256},{5060 % 256})\r\n".encode())
        assert control.recv(100).startswith(b"227 ")
        for _ in range(4):  # whichever worker it comes to
            client, data = through(lab, "transparent", 5060)
            client.sendall(MESSAGE % 0)
            assert data.recv(1000) == MESSAGE % 0
            rows = [row for row in gateway.admin("flows") if row["server"] == f"{SERVER4}:5060"]
            assert [row["module"] for row in rows] == [None]
            assert exchange(client, data, STREAMS["junk"], STREAMS["much junk"], 1000) == (
                STREAMS["junk"],
                STREAMS["much junk"],
            )
            lab.wait_for(lambda: len(gateway.admin("flows")) == 1, 30, "the data connection to end")

"""Every relayed connection has keep-alives on both sides, whatever brought it, so that no router on the way forgets it:
many do after five minutes (haproxy/haproxy#252), some after one (scandum/tintin#101)."""

from __future__ import annotations

import base64
import re
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import ask5

EVERY, PLAIN = 45, 7070


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    config = lab.write_config(
        network={"keepalive": EVERY},
        socks={"protocols": ["socks5", "socks4", "http"]},
        transparent={"ports": [PLAIN]},
        process={"workers": 1},
    )
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def directly(port: int) -> Callable[[Lab], tuple[socket.socket, int]]:
    return lambda lab: (lab.connect("inside", SERVER4, port), port)


def by_socks5(port: int) -> Callable[[Lab], tuple[socket.socket, int]]:
    def ask(lab: Lab) -> tuple[socket.socket, int]:
        sock = lab.connect("inside", ROUTER_IN4, 1080)
        assert ask5(sock, SERVER4, port)[0] == 0
        return sock, port

    return ask


def by_socks4(lab: Lab) -> tuple[socket.socket, int]:
    sock = lab.connect("inside", ROUTER_IN4, 1080)
    sock.sendall(struct.pack(">BBH", 4, 1, 7001) + socket.inet_aton(SERVER4) + b"\0")
    assert sock.recv(8)[:2] == b"\0\x5a"
    return sock, 7001


def by_http(lab: Lab) -> tuple[socket.socket, int]:
    sock = lab.connect("inside", ROUTER_IN4, 1080)
    name = base64.b64encode(b"nobody:nothing").decode()
    sock.sendall(f"CONNECT {SERVER4}:7001 HTTP/1.1\r\nProxy-Authorization: Basic {name}\r\n\r\n".encode())
    assert sock.recv(200).startswith(b"HTTP/1.1 200 ")
    return sock, 7001


WAYS = {
    "FTP": directly(21),
    "SIP over TCP": directly(5060),
    "RTSP": directly(554),
    "IRC": directly(6667),
    "without a module": directly(PLAIN),
    "SOCKS 5": by_socks5(7001),
    "SOCKS 5, FTP": by_socks5(21),
    "SOCKS 4": by_socks4,
    "HTTP CONNECT": by_http,
}


def timers(lab: Lab, port: int) -> list[str]:
    """What ss says of the keep-alives of the gateway's two sockets."""
    lines = lab.run("router", ["ss", "-tnoH", "state", "established"]).stdout.splitlines()
    ours = [line for line in lines if re.search(rf":({port}|1080|10800)\s", line)]
    return [line.partition("timer:(keepalive,")[2] for line in ours]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_both_sides(lab: Lab, gateway: Gateway, way: Callable[[Lab], tuple[socket.socket, int]]) -> None:
    listeners = [lab.listen("outside", SERVER4, each) for each in (21, 554, 5060, 6667, PLAIN, 7001)]
    client, port = way(lab)
    server = next(each for each in listeners if each.getsockname()[1] == port).accept()[0]
    try:
        server.sendall(b"220 hello\r\n")
        client.settimeout(5)
        assert client.recv(64)

        def settled() -> list[str]:
            found = timers(lab, port)
            return found if len(found) == 2 and all(found) else []

        for timer in lab.wait_for(settled, 5, "keep-alives of both sides"):
            assert float(re.match(r"[0-9.]+", timer.replace("min", ""))[0]) <= EVERY, timer  # type: ignore[index]
    finally:
        for sock in (client, server, *listeners):
            sock.close()
        lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def test_a_peer_of_bind(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        code, host, port = ask5(client, SERVER4, 7001, 2)
        assert code == 0
        with lab.connect("outside", host, port):
            assert client.recv(64)[:2] == b"\5\0"
            lab.wait_for(lambda: len(found := timers(lab, port)) == 2 and all(found), 5, "keep-alives of both sides")
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")

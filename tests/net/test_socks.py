"""The SOCKS front on the wire: replies that tell the truth, one deadline, nothing read that is the server's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, SERVER6, Lab
from tests.net.socks_wire import GREETING, receive, reply5, request4, request5

PORT = 8022
TIMEOUT = 1.0


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({"files.example": [SERVER4], "six.example": [SERVER6], "home.example": ["127.0.0.1"]})
    gateway = lab.start_gateway(lab.write_config(socks={"handshake_timeout": TIMEOUT}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    listener = lab.listen("outside", "::", PORT)
    yield listener
    listener.close()


@pytest.fixture
def client(lab: Lab, gateway: Gateway) -> Iterator[socket.socket]:
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        yield client
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


@pytest.mark.parametrize("host", [SERVER4, SERVER6, "files.example", "six.example"])
def test_connect(client: socket.socket, listener: socket.socket, host: str) -> None:
    client.sendall(GREETING)
    assert receive(client, 2) == b"\5\0"
    client.sendall(request5(host, PORT))
    code, bound, port = reply5(client)
    server, peer = listener.accept()
    assert code == 0
    assert (bound, port) == (peer[0].removeprefix("::ffff:"), peer[1])  # BND.ADDR is the truth
    server.sendall(b"hello")
    assert receive(client, 5) == b"hello"
    server.close()


@pytest.mark.parametrize("host", [SERVER4, "files.example"])
def test_connect_by_version_4(client: socket.socket, listener: socket.socket, host: str) -> None:
    client.sendall(request4(host, PORT))
    assert receive(client, 2) == b"\0\x5a"
    server, peer = listener.accept()
    assert receive(client, 6) == peer[1].to_bytes(2, "big") + socket.inet_aton(ROUTER_OUT4)
    client.sendall(b"hello")
    assert receive(server, 5) == b"hello"
    server.close()


@pytest.mark.parametrize("whole", [GREETING + request5(SERVER4, PORT), request4(SERVER4, PORT)], ids=["5", "4"])
@pytest.mark.parametrize("dribble", [False, True])
def test_what_comes_behind_the_request_is_for_the_server(
    client: socket.socket, listener: socket.socket, whole: bytes, dribble: bool
) -> None:
    """In one packet with all before it, or byte by byte."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in [whole[i : i + 1] for i in range(len(whole))] if dribble else []:
        client.sendall(part)
    client.sendall((b"" if dribble else whole) + b"early data")
    server, _ = listener.accept()
    server.settimeout(5)
    assert receive(server, 10) == b"early data"
    server.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (request5(SERVER4, 9), 5),  # refused
        (request5("203.0.113.99", PORT), 4),  # nobody answers on the link
        (request5("198.51.100.1", PORT), 3),  # no route
        (request5("missing.example", PORT), 4),
        (request5("127.0.0.1", 22), 2),
        (request5("0.0.0.0", 22), 2),
        (request5("::ffff:127.0.0.1", 22), 2),
        (request5("home.example", 22), 2),  # a name that leads to loopback
        (request5("169.254.169.254", 80), 2),
        (request5(ROUTER_OUT4, 9180), 2),
        (request5(CLIENT4, 22), 2),
        (request5(SERVER4, PORT, command=9), 7),
        (b"\5\1\0\7" + bytes(20), 8),
    ],
)
def test_a_reply_tells_the_truth(lab: Lab, client: socket.socket, request_: bytes, code: int) -> None:
    client.sendall(GREETING + request_)
    assert receive(client, 2) == b"\5\0"
    assert reply5(client)[0] == code
    assert client.recv(1) == b""  # and closes


@pytest.mark.parametrize("request_", [request4(SERVER4, 9), request4("127.0.0.1", 22), request4("missing.example", 1)])
def test_a_refusal_by_version_4(client: socket.socket, request_: bytes) -> None:
    client.sendall(request_)
    assert receive(client, 8)[:2] == b"\0\x5b"
    assert client.recv(1) == b""


def test_no_acceptable_method(client: socket.socket) -> None:
    client.sendall(b"\5\2\1\2")
    assert receive(client, 2) == b"\5\xff"
    assert client.recv(1) == b""


def test_another_protocol_is_closed_without_a_word(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    "start", [b"\5\xff", GREETING + b"\5\1\0\3\xff", b"\4\1\0\x50\1\2\3\4"], ids=["methods", "name", "userid"]
)
def test_the_deadline_is_for_the_whole_handshake(client: socket.socket, start: bytes) -> None:
    """However a client dribbles, it is closed after the one deadline."""
    client.settimeout(0.1)
    ended = False
    client.sendall(start)
    began = time.monotonic()
    while not ended and time.monotonic() - began < 5:
        try:
            ended = client.recv(64) == b""
        except TimeoutError:
            client.sendall(b"a")
        except ConnectionResetError:
            ended = True
    assert TIMEOUT - 0.3 < time.monotonic() - began < TIMEOUT + 1


def test_a_silent_client_is_closed_too(client: socket.socket) -> None:
    began = time.monotonic()
    assert client.recv(1) == b""
    assert TIMEOUT - 0.3 < time.monotonic() - began < TIMEOUT + 1

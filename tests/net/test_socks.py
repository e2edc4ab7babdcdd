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
# Names that somebody was seen to use, and what DNS knows them by.
ODD_NAMES = [
    "-begins.example",  # ArchiveTeam/wpull#221: Chromium finds such hosts
    "ends-.example",
    "-.example",
    "r3---sn-4g5.example",
    "ipv4_1-lagg0-c079.ix.example",  # shadowsocks/shadowsocks#694: a video's servers
    "_files._tcp.example",
    "_.example",
    "*.example",  # a name below a wildcard of DNS as it is written there
    "printer.12",
    "0x7f.example",
    "12345.example",
    "1.2.3.4.example",
    "xn--bcher-kva.example",
    "xn--.example",
    "x" * 63 + ".example",
    ".".join(["y" * 60] * 4) + ".example",  # 251 bytes
]


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    records = {"files.example": [SERVER4], "six.example": [SERVER6], "home.example": ["127.0.0.1"]}
    lab.dns(records | {key: [SERVER4] for key in ODD_NAMES})
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


@pytest.mark.parametrize(
    "host",
    [
        *ODD_NAMES,
        *(name.upper() + "." for name in ("files.example", *ODD_NAMES[::4])),  # curl/curl#3022
        "bücher.example",  # Anorov/PySocks#16: not every client encodes it
        "files.example\0",  # LacticWhale/socks_dart#15
        # An address as a name: curl/curl#8216, FreeRDP/FreeRDP#11532, hyperium/hyper-util#302, xroche/httrack#601.
        SERVER4 + "\0",
        f"::ffff:{SERVER4}\0",
        f"[{SERVER4}]",
        f"[::ffff:{SERVER4}]",
        f"[{SERVER6.upper()}]",
        # What inet_aton reads, as a client that resolves by itself has it.
        "203.0.28938",
        "3405803786",
        "0xcb.0x0.0x71.0xa",
    ],
)
def test_a_host_however_a_client_names_it(client: socket.socket, listener: socket.socket, host: str) -> None:
    name = host.encode()
    client.sendall(GREETING + bytes([5, 1, 0, 3, len(name)]) + name + PORT.to_bytes(2, "big"))
    assert receive(client, 2) == b"\5\0"
    assert reply5(client)[0] == 0
    server, _ = listener.accept()
    server.close()


@pytest.mark.parametrize(
    ("host", "code"),
    [
        # Others would read another address, or none. Nobody guesses.
        ("0313.0.113.10", 4),
        ("203.0.113.010", 4),
        (f"{SERVER4}.", 4),
        (f"{SERVER4}:{PORT}", 4),
        (f"[{SERVER6}]:{PORT}", 4),
        (f"{SERVER6}%eth0", 4),
        ("[fe80::1%25eth0]", 4),
        ("1.2.3.4.5", 4),
        ("a..example", 4),
        ("[files.example]", 4),
        ("x" * 64 + ".example", 4),
        (f"{SERVER4} ", 1),
        (f" {SERVER4}", 1),
        ("files.example\0\0", 1),
        # The router's own, and loopback.
        ("127.1", 2),
        ("0x7f.1", 2),
        ("2130706433", 2),
        ("0", 2),
        ("[127.0.0.1]", 2),
        ("[::ffff:7f00:1]", 2),
        ("0xcb007102", 2),
        ("LOCALHOST.", 2),
    ],
)
def test_what_names_no_host_that_may_be_reached(client: socket.socket, host: str, code: int) -> None:
    name = host.encode()
    client.sendall(GREETING + bytes([5, 1, 0, 3, len(name)]) + name + PORT.to_bytes(2, "big"))
    assert receive(client, 2) == b"\5\0"
    assert reply5(client)[0] == code


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

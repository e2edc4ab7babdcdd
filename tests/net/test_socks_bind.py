"""BIND: the listener stands before the first reply, only the expected peer comes in, real active FTP works by it."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT4,
    ROUTER_IN4,
    ROUTER_IN6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
)
from tests.net.socks_wire import GREETING, ask5, receive, reply4, reply5, request4, request5

BIND = 2
TIMEOUT = 4.0


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({"peer.example": [SERVER4, SERVER6], "home.example": ["127.0.0.1"]})
    # `per_client` is low, so that what leaks is noticed.
    config = lab.write_config(socks={"bind_timeout": TIMEOUT}, pinhole={"per_client": 4}, process={"workers": 1})
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture
def client(lab: Lab, gateway: Gateway) -> Iterator[socket.socket]:
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        yield client
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 10, "the pinhole to close")
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")


def exchange(client: socket.socket, peer: socket.socket) -> None:
    client.settimeout(5)
    peer.settimeout(5)
    client.sendall(b"from the client")
    assert receive(peer, 15) == b"from the client"
    peer.sendall(b"from the peer")
    peer.shutdown(socket.SHUT_WR)
    assert receive(client, 13) == b"from the peer"
    assert client.recv(1) == b""
    client.sendall(b"more")  # the half-close is passed on, and only that
    assert receive(peer, 4) == b"more"
    client.close()
    assert peer.recv(1) == b""


@pytest.mark.parametrize(("peer", "bound"), [(SERVER4, ROUTER_OUT4), (SERVER6, ROUTER_OUT6)])
def test_bind(lab: Lab, gateway: Gateway, client: socket.socket, peer: str, bound: str) -> None:
    code, host, port = ask5(client, peer, 21, BIND)
    assert (code, host) == (0, bound)
    assert 40000 <= port <= 49999
    [pinhole] = gateway.admin("pinholes")
    assert (pinhole["reason"], pinhole["peer"], pinhole["protocol"]) == ("socks.bind", peer, "tcp")
    with lab.connect("outside", host, port) as connection:  # at once: it has been listening since before the reply
        assert reply5(client) == (0, peer, connection.getsockname()[1])
        assert gateway.admin("pinholes") == []
        exchange(client, connection)


def test_bind_over_ipv6_for_a_peer_of_ipv4(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN6, 1080) as client:
        assert ask5(client, SERVER4, 21, BIND)[:2] == (0, ROUTER_OUT4)


def test_bind_by_version_4(lab: Lab, client: socket.socket) -> None:
    client.sendall(request4(SERVER4, 21, BIND))
    code, host, port = reply4(client)
    assert (code, host) == (90, ROUTER_OUT4)
    with lab.connect("outside", host, port) as connection:
        assert reply4(client) == (90, SERVER4, connection.getsockname()[1])
        exchange(client, connection)


def test_bind_by_version_4a_knows_only_ipv4(lab: Lab, client: socket.socket) -> None:
    client.sendall(request4("peer.example", 21, BIND))
    code, host, port = reply4(client)
    assert (code, host) == (90, ROUTER_OUT4)
    lab.connect("outside", host, port).close()
    assert reply4(client)[0] == 90


def test_the_listener_is_there_with_the_first_reply(lab: Lab, gateway: Gateway, client: socket.socket) -> None:
    """A known mistake of others: listening only after it. Many times, each connecting in the instant of the reply."""
    for _ in range(50):
        with lab.connect("inside", ROUTER_IN4, 1080) as other:
            _, host, port = ask5(other, SERVER4, 21, BIND)
            lab.connect("outside", host, port, timeout=1).close()


def test_a_stranger_is_closed_and_the_wait_goes_on(lab: Lab, gateway: Gateway, client: socket.socket) -> None:
    _, host, port = ask5(client, SERVER4, 21, BIND)
    for _ in range(3):
        with pytest.raises(ConnectionResetError), lab.connect("stranger", host, port) as stranger:
            stranger.recv(1)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(5)
    with lab.connect("outside", host, port) as connection:
        assert reply5(client)[:2] == (0, SERVER4)
        exchange(client, connection)
    gateway.wait_for_log(f"pinhole.stranger.*{STRANGER4}")


def test_only_one_connection_is_admitted(lab: Lab, client: socket.socket) -> None:
    _, host, port = ask5(client, SERVER4, 21, BIND)
    with lab.connect("outside", host, port):
        assert reply5(client)[0] == 0
        with pytest.raises(ConnectionRefusedError):
            lab.connect("outside", host, port)


def test_the_deadline(lab: Lab, client: socket.socket) -> None:
    began = time.monotonic()
    _, host, port = ask5(client, SERVER4, 21, BIND)
    assert reply5(client)[0] == 6
    assert client.recv(1) == b""
    assert TIMEOUT - 0.2 < time.monotonic() - began < TIMEOUT + 1
    with pytest.raises(ConnectionRefusedError):
        lab.connect("outside", host, port)


def test_a_client_that_goes_ends_the_wait(lab: Lab, gateway: Gateway, client: socket.socket) -> None:
    _, host, port = ask5(client, SERVER4, 21, BIND)
    client.close()
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 1, "the pinhole to close before its deadline")
    with pytest.raises(ConnectionRefusedError):
        lab.connect("outside", host, port)


def test_what_the_client_sends_while_it_waits_is_for_the_peer(lab: Lab, client: socket.socket) -> None:
    client.sendall(GREETING + request5(SERVER4, 21, BIND) + b"early")
    assert receive(client, 2) == b"\5\0"
    _, host, port = reply5(client)
    client.sendall(b" and later")
    with lab.connect("outside", host, port) as connection:
        connection.settimeout(5)
        assert receive(connection, 15) == b"early and later"


@pytest.mark.parametrize("early", [b"", b"from the client"])
def test_a_peer_that_speaks_and_resets_is_named_and_heard(lab: Lab, gateway: Gateway, early: bytes) -> None:
    """The reset is there before the gateway looks, and then the kernel does not tell any more who it was."""
    for _ in range(10):
        with lab.connect("inside", ROUTER_IN4, 1080) as client:
            _, host, port = ask5(client, SERVER4, 21, BIND)
            client.sendall(early)
            with lab.connect("outside", host, port) as connection:
                connection.sendall(b"its last words")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                port = connection.getsockname()[1]
            client.settimeout(5)
            assert reply5(client) == (0, SERVER4, port)
            assert receive(client, 14) == b"its last words"
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        lab.wait_for(lambda: not gateway.admin("pinholes") + gateway.admin("flows"), 10, "the end of the flow")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("0.0.0.0", 2),  # anybody: only where a rule allows it
        ("::", 2),
        ("127.0.0.1", 2),
        ("::ffff:127.0.0.1", 2),
        ("home.example", 2),
        (CLIENT4, 2),  # inside
        (ROUTER_OUT4, 2),  # the gateway itself
        ("missing.example", 4),
        ("198.51.100.1", 3),  # no route
    ],
)
def test_what_is_refused(client: socket.socket, host: str, code: int) -> None:
    assert ask5(client, host, 21, BIND)[0] == code
    assert client.recv(1) == b""


def test_the_quota_of_pinholes_is_the_same_one(lab: Lab, gateway: Gateway) -> None:
    """Modules and BIND share it; and each that ends gives its place back."""
    clients = [lab.connect("inside", ROUTER_IN4, 1080) for _ in range(5)]
    codes = [ask5(client, SERVER4, 21, BIND)[0] for client in clients]
    for client in clients:
        client.close()
    assert codes == [0, 0, 0, 0, 1]
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinholes to close")


# --- a rule that lets anybody in -------------------------------------------------------------------------------------


def test_anybody_where_a_rule_says_so(lab: Lab) -> None:
    rules = [{"action": "permit", "command": ["bind"], "any_peer": True}]
    own = {"socks": {"listen": [f"{ROUTER_IN4}:1090"]}, "pinhole": {"ports": "50000-50999"}}  # beside the other one
    gateway = lab.start_gateway(lab.write_config(rule=rules, network={"outside": ROUTER_OUT4}, **own), rules=False)
    try:
        with lab.connect("inside", ROUTER_IN4, 1090) as client:
            code, host, port = ask5(client, "0.0.0.0", 0, BIND)
            assert (code, host) == (0, ROUTER_OUT4)
            with lab.connect("stranger", host, port):
                assert reply5(client)[:2] == (0, STRANGER4)
        with lab.connect("inside", ROUTER_IN4, 1090) as client:
            assert ask5(client, SERVER4, 80)[0] == 2  # the rule is for `bind` apart from `connect`
    finally:
        assert gateway.stop() == 0


# --- active FTP ------------------------------------------------------------------------------------------------------


def test_active_ftp_through_bind(lab: Lab, gateway: Gateway) -> None:
    """A SOCKS client as RFC 1928 wants it: CONNECT, then BIND for each data connection, and PORT with BND.ADDR."""
    server = lab.vsftpd()
    content = os.urandom(500_000)
    file = server.root / "pub" / "file"
    file.write_bytes(content)
    file.chmod(0o644)
    try:
        with lab.connect("inside", ROUTER_IN4, 1080) as control:
            assert ask5(control, SERVER4, 21)[0] == 0
            replies = control.makefile("rb")

            def command(line: str) -> bytes:
                control.sendall(line.encode() + b"\r\n")
                return replies.readline()[:3]

            assert replies.readline().startswith(b"220")
            assert command("USER anonymous") == b"230"
            assert command("TYPE I") == b"200"
            for _ in range(3):
                with lab.connect("inside", ROUTER_IN4, 1080) as data:
                    _, host, port = ask5(data, SERVER4, 21, BIND)
                    assert command(f"PORT {host.replace('.', ',')},{port >> 8},{port & 255}") == b"200"
                    control.sendall(b"RETR pub/file\r\n")
                    assert reply5(data)[:2] == (0, SERVER4)
                    assert receive(data, len(content)) == content
                    assert data.recv(1) == b""
                assert replies.readline().startswith(b"150")
                assert replies.readline().startswith(b"226")
    finally:
        server.stop()

"""UDP ASSOCIATE: who is served, who may answer, what a fragment is, and that no stranger gets a byte."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT4,
    ROUTER_IN4,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
    Role,
)
from tests.net.socks_wire import ask5, datagram
from tests.net.udp_client import IDLE, PORT, UDP, Client, associate, config, silent, udp, works


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({"echo.example": [SERVER4], "six.example": [SERVER6], "home.example": ["127.0.0.1"]})
    gateway = lab.start_gateway(lab.write_config(**config()))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture
def empty(lab: Lab, gateway: Gateway) -> Iterator[None]:
    """Whatever a test has opened is gone soon after it."""
    yield
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the associations to end")
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 10, "the pinholes to close")


@pytest.fixture
def server(lab: Lab) -> Iterator[socket.socket]:
    with udp(lab, "outside", SERVER4, PORT) as sock:
        yield sock


@pytest.fixture
def server6(lab: Lab) -> Iterator[socket.socket]:
    with udp(lab, "outside", SERVER6, PORT) as sock:
        yield sock


@pytest.fixture
def client(lab: Lab, gateway: Gateway, empty: None) -> Iterator[Client]:
    client = associate(lab)
    yield client
    client.close()


def test_there_and_back(gateway: Gateway, client: Client, server: socket.socket) -> None:
    seen = works(client, server)
    assert seen[0] == ROUTER_OUT4
    assert works(client, server) == seen
    [pinhole] = gateway.admin("pinholes")
    assert (pinhole["protocol"], pinhole["reason"], pinhole["peer"]) == ("udp", "socks.udp", SERVER4)
    assert pinhole["public"] == f"{ROUTER_OUT4}:{seen[1]}"
    assert works(client, server) == seen  # so that it is not idle for as long as it takes to ask
    [flow] = gateway.admin("flows")
    assert (flow["up"], flow["down"]) == (24, 54)


@pytest.mark.parametrize("size", [0, 1, 1400, 9000, 65000])
def test_sizes(client: Client, server: socket.socket, size: int) -> None:
    works(client, server, bytes(size))


@pytest.mark.parametrize("version", [4, 6])
def test_targets_of_both_families_in_one_association(
    lab: Lab, gateway: Gateway, empty: None, server: socket.socket, server6: socket.socket, version: int
) -> None:
    client = associate(lab, version)
    assert works(client, server)[0] == ROUTER_OUT4
    assert works(client, server6)[0] == ROUTER_OUT6
    assert works(client, server)[0] == ROUTER_OUT4
    client.close()


def test_names(client: Client, server: socket.socket, server6: socket.socket) -> None:
    for i in range(3):
        client.send("echo.example", PORT, b"%d" % i)
    assert [server.recvfrom(99)[0] for _ in range(3)] == [b"0", b"1", b"2"]
    client.send("six.example", PORT, b"six")
    data, seen = server6.recvfrom(99)
    server6.sendto(data, seen)
    assert client.receive() == (SERVER6, PORT, b"six")


def test_a_name_that_is_not_answered_blocks_nothing(client: Client, server: socket.socket) -> None:
    for i in range(20):
        client.send(f"nobody{i}.invalid", PORT, b"lost")
    works(client, server)


# --- who is served ---------------------------------------------------------------------------------------------------


def test_other_hosts_are_not_served(lab: Lab, gateway: Gateway, client: Client, server: socket.socket) -> None:
    """An open UDP relay is a known mistake of others: neither before nor after the client's first datagram."""
    roles: tuple[Role, ...] = ("client2", "outside", "stranger")
    for role in roles:
        with udp(lab, role, "0.0.0.0") as other:
            with contextlib.suppress(OSError):
                other.sendto(datagram(SERVER4, PORT, b"stolen"), client.relay)
            silent(server)
            works(client, server)
            with contextlib.suppress(OSError):
                other.sendto(datagram(SERVER4, PORT, b"stolen"), client.relay)
            silent(server)
            silent(other)
    gateway.wait_for_log("socks.udp_stranger")


def test_the_first_port_of_the_client_is_its_only_one(lab: Lab, client: Client, server: socket.socket) -> None:
    works(client, server)
    with udp(lab, "inside", CLIENT4) as other:
        other.sendto(datagram(SERVER4, PORT, b"stolen"), client.relay)
        silent(server)
    works(client, server)


def test_a_hint_is_preferred_to_who_comes_first(lab: Lab, gateway: Gateway, empty: None, server: socket.socket) -> None:
    with udp(lab, "inside", CLIENT4) as first:
        control = lab.connect("inside", ROUTER_IN4, 1080)
        hinted = udp(lab, "inside", CLIENT4)
        code, host, port = ask5(control, CLIENT4, hinted.getsockname()[1], UDP)
        assert code == 0
        client = Client(control, hinted, (host, port))
        first.sendto(datagram(SERVER4, PORT, b"first"), client.relay)
        assert server.recvfrom(99)[0] == b"first"
        works(client, server)
        first.sendto(datagram(SERVER4, PORT, b"again"), client.relay)
        silent(server)
        client.close()


@pytest.mark.parametrize("hint", [("0.0.0.0", 9), ("203.0.113.99", 5555), (CLIENT4, 1), ("::", 0), ("a.example", 80)])
def test_a_hint_is_only_a_hint(
    lab: Lab, gateway: Gateway, empty: None, server: socket.socket, hint: tuple[str, int]
) -> None:
    client = associate(lab, hint=hint)
    works(client, server)
    client.close()


# --- who may answer --------------------------------------------------------------------------------------------------


def test_only_whom_the_client_has_written_to_may_answer(lab: Lab, client: Client, server: socket.socket) -> None:
    public = works(client, server)
    with udp(lab, "stranger", STRANGER4) as stranger, udp(lab, "outside", SERVER4) as other_port:
        stranger.sendto(b"unasked", public)
        other_port.sendto(b"unasked", public)
        silent(client.sock)
        silent(stranger)  # nothing comes back: no amplification
        client.send(STRANGER4, stranger.getsockname()[1], b"hello")
        assert stranger.recvfrom(99)[0] == b"hello"
        stranger.sendto(b"asked", public)
        assert client.receive() == (*stranger.getsockname(), b"asked")


# --- where to --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "own", "target"),
    [
        ("router", "127.0.0.1", "127.0.0.1"),
        ("router", "127.0.0.1", "::ffff:127.0.0.1"),
        ("router", "127.0.0.1", "home.example"),
        ("router", "::1", "::1"),
        ("router", "0.0.0.0", "0.0.0.0"),
        ("router", ROUTER_IN4, ROUTER_IN4),
        ("router", ROUTER_OUT4, ROUTER_OUT4),
        ("client2", "0.0.0.0", "192.168.56.11"),
        ("inside", CLIENT4, CLIENT4),
    ],
)
def test_what_is_refused(lab: Lab, client: Client, server: socket.socket, role: Role, own: str, target: str) -> None:
    """Deny rules that are not applied to UDP are a known mistake of others."""
    with udp(lab, role, own, PORT + 1) as victim:
        client.send(target, PORT + 1, b"attack")
        works(client, server)
        silent(victim)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\0",
        b"\0\0\0\1\1",
        b"\0\0\0\2" + bytes(20),
        b"\1\0\0\1" + socket.inet_aton(SERVER4) + PORT.to_bytes(2, "big") + b"reserved",
        b"\0\0\0\3\0\x14\xb4",
        b"\0\0\0\3\3a\nb\x14\xb4",
        b"\0\0\0\1" + socket.inet_aton(SERVER4) + b"\0\0port zero",
    ],
)
def test_nonsense_is_dropped(client: Client, server: socket.socket, wire: bytes) -> None:
    client.sock.sendto(wire, client.relay)
    works(client, server)


# --- fragments -------------------------------------------------------------------------------------------------------


def test_fragments(client: Client, server: socket.socket) -> None:
    for fragment, part in ((1, b"one "), (2, b"two "), (0x83, b"three")):
        client.send(SERVER4, PORT, part, fragment)
    assert server.recvfrom(99)[0] == b"one two three"
    client.send(SERVER4, PORT, b"lost", 1)
    client.send(SERVER4, PORT, b"whole")
    client.send(SERVER4, PORT, b"lost", 0x82)
    assert server.recvfrom(99)[0] == b"whole"
    silent(server)


# --- its end ---------------------------------------------------------------------------------------------------------


def gone(lab: Lab, gateway: Gateway, client: Client, deadline: float) -> None:
    def condition() -> bool:
        return gateway.admin("flows") == [] and gateway.admin("pinholes") == []

    lab.wait_for(condition, deadline, "the association to end")
    with udp(lab, "inside", CLIENT4) as probe:
        probe.connect(client.relay)
        probe.send(datagram(SERVER4, PORT, b"late"))
        with pytest.raises(ConnectionRefusedError):
            probe.recv(1)


@pytest.mark.parametrize("end", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_WR)])
def test_it_dies_with_its_connection(
    lab: Lab, gateway: Gateway, client: Client, server: socket.socket, end: Callable[[socket.socket], None]
) -> None:
    works(client, server)
    end(client.control)
    gone(lab, gateway, client, 2)


def test_the_idle_limit(lab: Lab, gateway: Gateway, client: Client, server: socket.socket) -> None:
    until = time.monotonic() + IDLE + 1
    while time.monotonic() < until:  # longer than the limit, but not idle
        works(client, server)
        time.sleep(IDLE / 4)
    gone(lab, gateway, client, IDLE + 1.5)
    assert client.control.recv(1) == b""


def test_datagrams_to_a_client_that_has_closed_its_socket(lab: Lab, client: Client, server: socket.socket) -> None:
    """The kernel's complaints about that reach nobody and end nothing."""
    public = works(client, server)
    own = client.sock.getsockname()
    client.sock.close()
    for _ in range(5):
        server.sendto(b"nobody", public)
    client.sock = udp(lab, "inside", *own)
    client.send(SERVER4, PORT, b"question")
    server.sendto(b"answer", server.recvfrom(99)[1])
    lab.wait_for(lambda: client.receive() == (SERVER4, PORT, b"answer"), 5, "the answer behind what came late")


def test_the_quota(lab: Lab, gateway: Gateway, empty: None, server: socket.socket) -> None:
    """Associations that have sent something count as pinholes; one beyond the quota sends nothing."""
    clients = [associate(lab) for _ in range(9)]
    for client in clients[:8]:
        works(client, server)
    clients[8].send(SERVER4, PORT, b"too many")
    silent(server)
    for client in clients:
        client.close()


def test_by_version_4_there_is_none(lab: Lab, gateway: Gateway) -> None:
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        client.sendall(bytes([4, UDP, 0, 80]) + socket.inet_aton(SERVER4) + b"\0")
        assert client.recv(8)[:2] == b"\0\x5b"

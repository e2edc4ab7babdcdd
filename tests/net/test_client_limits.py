"""What one client takes of what all share, on the wire: others are served whatever it does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT6, ROUTER_IN4, ROUTER_IN6, SERVER4, SERVER6, Lab, Role
from tests.net.socks_wire import GREETING, ask5, receive, reply5, request5

PORT = 7300
UDP = 3
DENIED = 2
LIMITS = {"flows": 20, "handshakes": 12, "associations": 6, "lookups": 5}


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    listeners = [lab.listen("outside", host, PORT) for host in (SERVER4, SERVER6)]
    # Nobody answers there: what is to be resolved waits.
    silent = lab.enter("outside")
    with silent:
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((SERVER4, 5399))
    gateway = lab.start_gateway(
        lab.write_config(
            limits=LIMITS, dns={"servers": [f"{SERVER4}:5399"], "timeout": 5.0}, process={"drain_timeout": 1}
        )
    )
    yield gateway
    assert gateway.stop() == 0
    for sock in (*listeners, names):
        sock.close()


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    yield socks
    for sock in socks:
        if sock.fileno() >= 0:
            reset(sock)


def reset(sock: socket.socket) -> None:
    """End a connection at once, both ways: nobody closes the other side of it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def workers(gateway: Gateway) -> list[dict[str, Any]]:
    return [row for row in gateway.admin("status") if row["process"].startswith("worker-")]


def quiet(gateway: Gateway) -> None:
    gateway.lab.wait_for(
        lambda: all(row["flows"] == 0 == row["handling"] for row in workers(gateway)), 20, "the flows to end"
    )


def connect(lab: Lab, role: Role, router: str, server: str, source: str = "") -> socket.socket | None:
    """A flow, or None if the connection was closed."""
    with lab.enter(role):
        sock = socket.create_connection((router, 1080), 5, (source, 0) if source else None)
    try:
        if ask5(sock, server, PORT)[0] == 0:
            return sock
    except OSError:
        pass
    sock.close()
    return None


@contextlib.contextmanager
def more_addresses(lab: Lab, count: int) -> Iterator[list[str]]:
    """The inside host has these IPv6 addresses too."""
    hosts = [f"fd00:56::5:{number:x}" for number in range(1, count + 1)]
    for host in hosts:
        lab.run("inside", ["ip", "-6", "addr", "add", f"{host}/64", "dev", "eth0", "nodad"])
    try:
        yield hosts
    finally:
        for host in hosts:
            lab.run("inside", ["ip", "-6", "addr", "del", f"{host}/64", "dev", "eth0"])


def test_flows_of_a_client_are_counted_over_the_workers(
    lab: Lab, gateway: Gateway, opened: list[socket.socket]
) -> None:
    """By exactly the number, whichever worker has them; others do not notice; what ends is free for another one."""
    quiet(gateway)
    refused = 0
    for _ in range(3 * LIMITS["flows"]):
        sock = connect(lab, "inside", ROUTER_IN4, SERVER4)
        if sock is None:
            refused += 1
        else:
            opened.append(sock)
    assert len(opened) == LIMITS["flows"]
    assert refused == 2 * LIMITS["flows"]
    assert all(row["flows"] for row in workers(gateway)), "the kernel gave all to one worker"
    other = connect(lab, "client2", ROUTER_IN4, SERVER4)
    assert other is not None
    reset(other)
    assert any("event=client.limit" in line and "kind=flows bound=most most=20" in line for line in gateway.log_lines())
    reset(opened.pop())
    lab.wait_for(lambda: sum(row["flows"] for row in workers(gateway)) == LIMITS["flows"] - 1, 5, "it to end")
    again = connect(lab, "inside", ROUTER_IN4, SERVER4)
    assert again is not None
    opened.append(again)
    assert connect(lab, "inside", ROUTER_IN4, SERVER4) is None


def test_all_addresses_of_a_host_are_one_client(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    """Its IPv4 address and whatever IPv6 addresses it gives itself; its neighbour in the same /64 is another one."""
    quiet(gateway)
    with more_addresses(lab, 2 * LIMITS["flows"]) as hosts:
        first = connect(lab, "inside", ROUTER_IN4, SERVER4)
        assert first is not None
        opened.append(first)
        for host in [CLIENT6, *hosts]:
            sock = connect(lab, "inside", ROUTER_IN6, SERVER6, host)
            if sock is not None:
                opened.append(sock)
        assert len(opened) == LIMITS["flows"]
        other = connect(lab, "client2", ROUTER_IN6, SERVER6)
        assert other is not None
        reset(other)
        for sock in opened:
            reset(sock)
        quiet(gateway)


def test_half_open_handshakes_are_bounded(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    quiet(gateway)
    with lab.enter("inside"):
        for _ in range(2 * LIMITS["handshakes"]):
            sock = socket.create_connection((ROUTER_IN4, 1080), 5)
            sock.sendall(GREETING[:1])
            opened.append(sock)
    lab.wait_for(
        lambda: sum(row["handling"] for row in workers(gateway)) == LIMITS["handshakes"], 5, "as many as there may be"
    )
    other = connect(lab, "client2", ROUTER_IN4, SERVER4)
    assert other is not None
    reset(other)


def test_udp_associations_are_bounded(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    quiet(gateway)
    codes = []
    for _ in range(LIMITS["associations"] + 3):
        sock = lab.connect("inside", ROUTER_IN4, 1080)
        opened.append(sock)
        codes.append(ask5(sock, "0.0.0.0", 0, UDP)[0])
    assert codes == [0] * LIMITS["associations"] + [DENIED] * 3
    opened.append(lab.connect("client2", ROUTER_IN4, 1080))
    assert ask5(opened[-1], "0.0.0.0", 0, UDP)[0] == 0
    assert any("rule=limits.associations" in line for line in gateway.log_lines())
    reset(opened[0])
    lab.wait_for(lambda: sum(row["flows"] for row in workers(gateway)) == LIMITS["associations"], 5, "the first to end")
    opened.append(lab.connect("inside", ROUTER_IN4, 1080))
    assert ask5(opened[-1], "0.0.0.0", 0, UDP)[0] == 0


def test_names_that_are_resolved_are_bounded(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    """Whoever asks for names of a silent server has so many waiting; further ones are refused at once."""
    quiet(gateway)
    answered = 0
    for number in range(LIMITS["lookups"] + 4):
        sock = lab.connect("inside", ROUTER_IN4, 1080)
        opened.append(sock)
        sock.sendall(GREETING + request5(f"name{number}.example.net", PORT))
        assert receive(sock, 2) == b"\5\0"
    lab.wait_for(lambda: sum("limits.lookups" in line for line in gateway.log_lines()) >= 4, 5, "four to be refused")
    for sock in opened:
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            assert reply5(sock)[0] == DENIED
            answered += 1
    assert answered == 4
    other = lab.connect("client2", ROUTER_IN4, 1080)
    opened.append(other)
    other.sendall(GREETING + request5("other.example.net", PORT))
    assert receive(other, 2) == b"\5\0"
    other.settimeout(0.3)
    with pytest.raises(TimeoutError):
        other.recv(1)  # it waits, as any other


def test_what_a_killed_worker_held_is_free(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    quiet(gateway)
    while len(opened) < LIMITS["flows"]:
        sock = connect(lab, "inside", ROUTER_IN4, SERVER4)
        assert sock is not None
        opened.append(sock)
    victim = max(workers(gateway), key=lambda row: int(row["flows"]))
    lost = victim["flows"]
    os.kill(victim["pid"], signal.SIGKILL)
    lab.wait_for(
        lambda: len(gateway.admin("status")) >= 4 and all(row["pid"] != victim["pid"] for row in workers(gateway)),
        10,
        "another worker",
    )
    got = 0
    until = time.monotonic() + 10
    while got < lost and time.monotonic() < until:
        sock = connect(lab, "inside", ROUTER_IN4, SERVER4)
        if sock is not None:
            opened.append(sock)
            got += 1
    assert got == lost
    assert connect(lab, "inside", ROUTER_IN4, SERVER4) is None

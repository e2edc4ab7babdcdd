"""Limits that keep the gateway alive: slow handshakes, descriptors, half-closed flows, clients that vanish."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import GREETING, ask5, receive, reply5, request5

PORT = 8023
TIMEOUT = 10.0
SLOW = 5000
MIB = 1 << 20


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    sections = {"socks": {"handshake_timeout": TIMEOUT}, "process": {"workers": 1}}
    gateway = lab.start_gateway(lab.write_config(**sections))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    with lab.listen("outside", SERVER4, PORT) as listener:
        yield listener


def worker(gateway: Gateway) -> dict[str, int]:
    """The status row of the one worker."""
    [row] = [row for row in gateway.admin("status") if str(row["process"]).startswith("worker")]
    return row


def descriptors(gateway: Gateway) -> int:
    return len(os.listdir(f"/proc/{worker(gateway)['pid']}/fd"))


def serve_once(lab: Lab, listener: socket.socket) -> float:
    """Seconds for an honest client to get a connection."""
    began = time.monotonic()
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        assert ask5(client, SERVER4, PORT)[0] == 0
        server, _ = listener.accept()
        client.sendall(b"hello")
        assert receive(server, 5) == b"hello"
        server.close()
    return time.monotonic() - began


@pytest.mark.slow
def test_slow_handshakes(lab: Lab, gateway: Gateway, listener: socket.socket) -> None:
    """5,000 at once cost one deadline; meanwhile an honest client is served, and afterwards nothing is left of them."""
    serve_once(lab, listener)
    before = descriptors(gateway)
    slow: list[socket.socket] = []
    starts = [b"", b"\5", b"\5\2\0", GREETING, GREETING + b"\5\1\0\3\xff", b"\4\1\0\x50"]
    began = time.monotonic()
    try:
        with lab.enter("inside"):
            for i in range(SLOW):
                sock = socket.create_connection((ROUTER_IN4, 1080), 5)
                slow.append(sock)
                sock.send(starts[i % len(starts)])
        assert time.monotonic() - began < TIMEOUT - 1, "this machine is too slow to have them all open at once"
        lab.wait_for(lambda: worker(gateway)["handling"] >= SLOW, 5, "all of them to be open at once")
        served = [serve_once(lab, listener) for _ in range(10)]
        assert sorted(served)[5] < 0.1, served
        assert max(served) < 0.5, served
        lab.wait_for(
            lambda: worker(gateway)["handling"] == 0, began + TIMEOUT + 15 - time.monotonic(), "them to be gone"
        )
        ended = 0
        for sock in slow:
            sock.settimeout(1)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(64):
                    pass
            ended += 1
        assert ended == SLOW
        lab.wait_for(lambda: descriptors(gateway) <= before + 8, 5, "their descriptors to be closed")
    finally:
        for sock in slow:
            sock.close()


def test_running_out_of_descriptors(lab: Lab, listener: socket.socket) -> None:
    """The limit is never hit: what is beyond it waits in the backlog, and is served as soon as others go."""
    limit = 200
    config = lab.write_config(
        socks={"listen": [f"{ROUTER_IN4}:1090"]}, process={"workers": 1}, pinhole={"ports": "50000-50999"}
    )
    gateway = Gateway(lab, config)
    limited = lab.tmp / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -n {limit}\nexec {gateway.command} "$@"\n')
    limited.chmod(0o755)
    gateway.command = limited
    gateway.start(rules=False)
    clients: list[socket.socket] = []
    try:
        for _ in range(150):
            client = lab.connect("inside", ROUTER_IN4, 1090)
            clients.append(client)
            client.sendall(GREETING + request5(SERVER4, PORT))
        gateway.wait_for_log("accept.exhausted")
        # The command line still gets through: some are in reserve.
        assert 10 < worker(gateway)["flows"] < limit // 2
        assert descriptors(gateway) < limit - 10
        served = 0
        while served < len(clients):  # whoever waits is served in turn, once others have gone
            for client in clients[served : served + 10]:
                client.settimeout(5)
                assert receive(client, 2) == b"\5\0"
                assert reply5(client)[0] == 0
                client.close()
            drain(listener)  # their servers
            served += 10
        gateway.wait_for_log("accept.recovered")
        assert not [line for line in gateway.log_lines() if "Traceback" in line or "EMFILE" in line]
        drain(listener)
        lab.wait_for(lambda: worker(gateway)["flows"] == 0 and worker(gateway)["handling"] == 0, 15, "them to go")
    finally:
        for client in clients:
            client.close()
        assert gateway.stop() == 0


def drain(listener: socket.socket) -> None:
    """Forget the connections that nobody has accepted."""
    listener.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            listener.accept()[0].close()
    listener.settimeout(10)


@pytest.mark.parametrize("version", [4, 5])
def test_a_half_closed_flow_gets_its_answer(lab: Lab, gateway: Gateway, listener: socket.socket, version: int) -> None:
    """Lost half-close replies are a known mistake of others: 8 MiB up, then shutdown, then 1 MiB back."""
    up, back = os.urandom(8 * MIB), os.urandom(MIB)
    with lab.connect("inside", ROUTER_IN4, 1080) as client:
        if version == 5:
            assert ask5(client, SERVER4, PORT)[0] == 0
        else:
            client.sendall(b"\4\1" + PORT.to_bytes(2, "big") + socket.inet_aton(SERVER4) + b"\0")
            assert receive(client, 8)[1] == 90
        server, _ = listener.accept()
        got = bytearray()

        def serve() -> None:
            while data := server.recv(65536):
                got.extend(data)
            time.sleep(0.5)  # a server that thinks, while its client has closed its direction
            server.sendall(back)
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        client.settimeout(10)
        client.sendall(up)
        client.shutdown(socket.SHUT_WR)
        answer = receive(client, MIB)
        assert client.recv(1) == b""
        thread.join(10)
        assert got == up
        assert answer == back
    lab.wait_for(lambda: gateway.admin("flows") == [], 5, "the flow to end")


def test_clients_that_vanish_leave_nothing(lab: Lab, gateway: Gateway, listener: socket.socket) -> None:
    """CLOSE_WAIT growth is a known mistake of others. At each point of a handshake, and in each command."""
    before = descriptors(gateway)
    whole = GREETING + request5(SERVER4, PORT)
    for end in (socket.SHUT_WR, None):
        for cut in range(len(whole) + 1):
            client = lab.connect("inside", ROUTER_IN4, 1080)
            client.sendall(whole[:cut])
            if end is not None:
                client.shutdown(end)
            client.close()
        for command in (2, 3):
            client = lab.connect("inside", ROUTER_IN4, 1080)
            assert ask5(client, SERVER4, 0, command)[0] == 0
            client.close()
    drain(listener)

    def clean() -> bool:
        states = lab.run("router", ["ss", "-Htan", "state", "close-wait"]).stdout
        row = worker(gateway)
        return not states.strip() and row["flows"] == 0 and row["handling"] == 0

    lab.wait_for(clean, 5, "everything to be gone")
    lab.wait_for(lambda: descriptors(gateway) <= before + 4, 5, "the descriptors to be closed")


def test_many_at_once_in_a_flow(lab: Lab, gateway: Gateway, listener: socket.socket) -> None:
    """500 flows of one client at once, counted right, and gone when they are gone."""
    clients = []
    servers = []
    for _ in range(500):
        client = lab.connect("inside", ROUTER_IN4, 1080)
        client.sendall(GREETING + request5(SERVER4, PORT))
        clients.append(client)
        servers.append(listener.accept()[0])
    for client in clients:
        assert receive(client, 2) == b"\5\0"
        assert reply5(client)[0] == 0
    assert worker(gateway)["flows"] == 500
    for sock in (*clients, *servers):
        sock.close()
    lab.wait_for(lambda: worker(gateway)["flows"] == 0, 10, "the flows to end")

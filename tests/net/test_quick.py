"""The short way of plain connections: what a client does while its server is still being dialled."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import GREETING, receive, reply5, request5

PORT = 8023


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(process={"workers": 1}, transparent={"ports": [PORT]}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    listener = lab.listen("outside", SERVER4, PORT)
    listener.settimeout(10)
    yield listener
    listener.close()


@contextmanager
def unanswered(lab: Lab) -> Iterator[None]:
    """The server's host does not answer; afterwards it does, to the next try of the gateway's kernel (1 s)."""
    rule = ["INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP"]
    lab.run("outside", ["iptables", "-I", *rule])
    try:
        yield
    finally:
        lab.run("outside", ["iptables", "-D", *rule])


def worker(gateway: Gateway) -> dict[str, int]:
    """What the worker says of itself."""
    (row,) = [row for row in gateway.admin("status") if row["process"] == "worker-0"]
    return row


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("front", ["socks", "transparent"])
@pytest.mark.parametrize("act", ["talk", "end", "reset"])
def test_what_a_client_does_meanwhile_waits(
    lab: Lab, gateway: Gateway, listener: socket.socket, front: str, act: str
) -> None:
    before = worker(gateway)
    with unanswered(lab):
        client = lab.connect("inside", *((ROUTER_IN4, 1080) if front == "socks" else (SERVER4, PORT)))
        if front == "socks":
            client.sendall(GREETING + request5(SERVER4, PORT))
            assert receive(client, 2) == b"\5\0"
        lab.wait_for(lambda: worker(gateway)["handling"] == 1, 5, "the server to be dialled")
        if act == "talk":
            client.sendall(b"early")
        elif act == "end":
            client.shutdown(socket.SHUT_WR)
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        used, until = cpu(before["pid"]), monotonic() + 0.4
        lab.wait_for(lambda: monotonic() > until, 5, "a moment of the worker's time")
        assert cpu(before["pid"]) - used < 0.2, "it is told again and again of what it cannot do anything about"
    server, _address = listener.accept()
    server.settimeout(5)
    if act == "reset":
        try:
            assert server.recv(1) == b""
        except ConnectionResetError:
            pass
    else:
        if front == "socks":
            assert reply5(client)[0] == 0
        if act == "talk":
            assert receive(server, 5) == b"early"
            client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(b"answer")
        assert receive(client, 6) == b"answer"
        client.close()
    server.close()
    lab.wait_for(lambda: gateway.admin("flows") == [] and not worker(gateway)["handling"], 10, "the end of it")
    after = worker(gateway)
    assert after["watchers"] <= before["watchers"]

"""Limits of rules are of all workers together: sessions, rates, quotas; also when workers die or are replaced."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, SERVER4, Lab, Role
from tests.net.socks_wire import ask5

FEW, RATED, QUOTED, SLOW = 7401, 7402, 7403, 7404
RATE = 400_000
QUOTA = 3_000_000
RULES = [
    {"name": "few", "action": "permit", "port": [FEW], "max_sessions": 5, "max_sessions_per_client": 3},
    {"name": "rated", "action": "permit", "port": [RATED], "bandwidth_per_client": RATE},
    {"name": "quoted", "action": "permit", "port": [QUOTED], "quota_per_client": QUOTA},
    {"name": "slow", "action": "permit", "port": [SLOW], "max_session_rate": 4},
]
DENIED = 2


@pytest.fixture(scope="module", autouse=True)
def servers(lab: Lab) -> Iterator[None]:
    """Each sends without end."""
    listeners = [lab.listen("outside", SERVER4, port) for port in (FEW, RATED, QUOTED, SLOW)]

    def serve(sock: socket.socket) -> None:
        try:
            with sock:
                if sock.getsockname()[1] in (FEW, SLOW):
                    sock.recv(1)
                while True:
                    sock.sendall(bytes(65536))
        except OSError:
            pass

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(None)
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threads = [threading.Thread(target=accept, args=(listener,), daemon=True) for listener in listeners]
    for listener, thread in zip(listeners, threads, strict=True):
        listener.settimeout(None)
        thread.start()
    yield
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    config = lab.write_config(process={"workers": 2, "drain_timeout": 1, "retire_timeout": 60}, rule=RULES)
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    yield socks
    for sock in socks:
        reset(sock)


def reset(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def ask(lab: Lab, port: int, role: Role = "inside") -> socket.socket | None:
    """A session, or None where it is denied."""
    sock = lab.connect(role, ROUTER_IN4, 1080)
    code = ask5(sock, SERVER4, port)[0]
    if code == 0:
        return sock
    assert code == DENIED
    sock.close()
    return None


def worker_of(gateway: Gateway) -> dict[int, str]:
    """Which worker has the flow from a client's port."""
    return {int(row["client"].rpartition(":")[2]): row["id"].partition("-")[0] for row in gateway.admin("flows")}


def pids(gateway: Gateway) -> dict[str, int]:
    rows: list[dict[str, Any]] = gateway.admin("status")
    return {row["process"]: row["pid"] for row in rows if row["process"].startswith("worker-")}


def take_all(lab: Lab, opened: list[socket.socket]) -> int:
    """As many sessions of FEW as two clients get."""
    count = 0
    for role in ("inside", "client2", "inside", "client2", "inside", "client2", "inside", "client2"):
        sock = ask(lab, FEW, role)
        if sock is not None:
            opened.append(sock)
            count += 1
    return count


def test_sessions_are_counted_exactly(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    for _ in range(5):  # the kernel spreads them in another way each time
        assert sum(ask_and_keep(lab, FEW, opened) for _ in range(6)) == 3  # of one client
        for sock in opened:
            reset(sock)
        opened.clear()
        lab.wait_for(lambda: not worker_of(gateway), 10, "all to be over")
        assert take_all(lab, opened) == 5
        for sock in opened:
            reset(sock)
        opened.clear()
        lab.wait_for(lambda: not worker_of(gateway), 10, "all to be over")


def ask_and_keep(lab: Lab, port: int, opened: list[socket.socket]) -> bool:
    sock = ask(lab, port)
    if sock is not None:
        opened.append(sock)
    return sock is not None


def test_a_worker_that_is_killed_frees_its_sessions_and_a_reload_none(
    lab: Lab, gateway: Gateway, opened: list[socket.socket]
) -> None:
    assert take_all(lab, opened) == 5
    gateway.algate("reload")
    assert take_all(lab, opened) == 0
    owners = worker_of(gateway)
    victim = max(set(owners.values()), key=list(owners.values()).count)
    lost = list(owners.values()).count(victim)
    before = pids(gateway)
    os.kill(before[f"worker-{victim[1:]}"], signal.SIGKILL)
    lab.wait_for(lambda: len(pids(gateway)) == 2 and pids(gateway) != before, 10, "another worker")
    assert take_all(lab, opened) == lost
    assert take_all(lab, opened) == 0


def test_new_sessions_a_second(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    began = time.monotonic()
    got = 0
    while time.monotonic() - began < 5:
        got += ask_and_keep(lab, SLOW, opened)
    took = time.monotonic() - began
    assert got <= 4 + 4 * took
    assert got >= 4 * took - 1


@pytest.mark.slow
def test_a_rate_is_of_all_workers_together(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    """Two downloads in two workers have it together; one alone has all of it."""
    for wanted in (2, 1):
        while len(set(worker_of(gateway).values())) < wanted:
            assert ask_and_keep(lab, RATED, opened)
        moved = read_for(opened, 3.0)  # the burst, and what waits in buffers
        moved = read_for(opened, 8.0)
        assert moved == pytest.approx(8.0 * RATE, rel=0.05), (wanted, moved)
        for sock in opened:
            reset(sock)
        opened.clear()
        lab.wait_for(lambda: not worker_of(gateway), 10, "all to be over")


def read_for(socks: list[socket.socket], seconds: float) -> int:
    """How many bytes come in this time, by all of them."""
    counts = [0] * len(socks)
    until = time.monotonic() + seconds

    def read(at: int) -> None:
        socks[at].settimeout(0.05)
        while time.monotonic() < until:
            try:
                counts[at] += len(socks[at].recv(65536))
            except TimeoutError:
                pass

    threads = [threading.Thread(target=read, args=(at,)) for at in range(len(socks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


@pytest.mark.slow
def test_a_quota_is_of_all_workers_together(lab: Lab, gateway: Gateway, opened: list[socket.socket]) -> None:
    """To the byte, whichever workers move it; and a worker that dies has used what it has used."""
    for _ in range(6):
        ask_and_keep(lab, QUOTED, opened)
    moved = 0
    for sock in opened:
        sock.settimeout(15)
        try:
            while data := sock.recv(65536):
                moved += len(data)
        except ConnectionResetError:
            pass
    assert moved <= QUOTA
    assert ask(lab, QUOTED) is None
    before = pids(gateway)
    os.kill(next(iter(before.values())), signal.SIGKILL)
    lab.wait_for(lambda: len(pids(gateway)) == 2 and pids(gateway) != before, 10, "another worker")
    for _ in range(6):
        assert ask(lab, QUOTED) is None


def test_limits_of_rules_are_of_a_host_with_all_its_addresses(
    lab: Lab, gateway: Gateway, opened: list[socket.socket]
) -> None:
    """Sessions and quota: one more IPv6 address is not one more client, and a neighbour in the same /64 is another."""
    for client in (f"fd00:56::77:{number:x}" for number in range(1, 7)):
        lab.run("inside", ["ip", "-6", "addr", "add", f"{client}/64", "dev", "eth0", "nodad"])
        try:
            with lab.enter("inside"):
                sock = socket.create_connection((ROUTER_IN6, 1080), 5, (client, 0))
            opened.append(sock)
            code = ask5(sock, SERVER4, FEW)[0]
            assert code == (0 if len(opened) <= 3 else DENIED), client
        finally:
            lab.run("inside", ["ip", "-6", "addr", "del", f"{client}/64", "dev", "eth0"])
    sock = lab.connect("client2", ROUTER_IN6, 1080)
    opened.append(sock)
    assert ask5(sock, SERVER4, FEW)[0] == 0

"""One client that takes all that it can, by the default configuration or nearly: its neighbours are served."""

from __future__ import annotations

import contextlib
import ftplib
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.lab import CLIENT2_6, ROUTER_IN4, SERVER4, SERVER6, Lab, Role
from tests.net.ftp_control import split
from tests.net.socks_wire import GREETING, ask5, request5
from tests.net.test_client_limits import more_addresses, workers

PORT = 7300


@pytest.mark.long
def test_a_host_with_many_addresses_does_not_take_all_pinholes(lab: Lab) -> None:
    """By FTP, from each of its addresses; a neighbour in the same /64 gets one all the same."""
    server = lab.vsftpd()
    gateway = lab.start_gateway(lab.write_config(pinhole={"per_client": 3}, process={"drain_timeout": 1}))
    sessions: list[ftplib.FTP] = []

    def asks(role: Role, host: str) -> None:
        """An active session from this address."""
        with lab.enter(role):
            session = ftplib.FTP(timeout=20)
            sessions.append(session)
            session.connect(SERVER6, 21, source_address=(host, 0))
        session.login()
        with contextlib.suppress(ftplib.Error):
            session.sendeprt(host, 50000)

    try:
        with more_addresses(lab, 6) as hosts:
            for host in hosts:
                asks("inside", host)
            asks("client2", CLIENT2_6)
            holders = [split(row["target"])[0] for row in gateway.admin("pinholes")]
            assert sorted(holders) == sorted([*hosts[:3], CLIENT2_6])
    finally:
        for session in sessions:
            session.close()
        assert gateway.stop() == 0
        server.stop()


Ask = Callable[[int], bytes]
UDP = 3
SILENT = """
import socket, sys
listener, held = socket.create_server(("", int(sys.argv[1])), backlog=4096), []
while True:
    held.append(listener.accept())
"""
TOGETHER = 200  # connections that are opened at once, for the listener's backlog


def taken(lab: Lab, count: int, ask: Ask, socks: list[socket.socket]) -> None:
    """So many connections of the client inside, each of which says the greeting and `ask(number)`; those that the
    gateway closes or refuses are given back, as we have no more descriptors than it has."""
    with lab.enter("inside"):
        for first in range(0, count, TOGETHER):
            batch = []
            for _ in range(min(TOGETHER, count - first)):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect((ROUTER_IN4, 1080))
                batch.append(sock)
            waiting = {sock.fileno(): sock for sock in batch}
            poll = select.poll()
            for sock in batch:
                poll.register(sock, select.POLLOUT)
            until = time.monotonic() + 5
            while waiting and time.monotonic() < until:
                for fd, _ in poll.poll(1000):
                    poll.unregister(fd)
                    sock = waiting.pop(fd)
                    with contextlib.suppress(OSError):
                        sock.send(GREETING + ask(first + len(waiting)))
            socks += batch
            if first % (10 * TOGETHER) == 0:
                for sock in filter(refused, socks):
                    sock.close()
                socks[:] = [sock for sock in socks if sock.fileno() >= 0]


def refused(sock: socket.socket) -> bool:
    """Whether the gateway has said no, in a reply or by closing it."""
    try:
        said = sock.recv(64, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not said or (len(said) > 3 and said[3] != 0)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["associations", "flows", "names"])
def test_one_client_that_takes_all_it_can_by_default(lab: Lab, what: str) -> None:
    """Without any key of `limits`: 10,000 associations, 19,900 idle flows, 15,000 names of a silent server; another
    client gets flows and associations meanwhile, and a worker's memory stays what it is."""
    listener = lab.listen("outside", SERVER4, PORT + 1)
    server = lab.popen("outside", [sys.executable, "-c", SILENT, str(PORT + 2)])
    with lab.enter("outside"):
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((SERVER4, 5398))
    gateway = lab.start_gateway(
        lab.write_config(dns={"servers": [f"{SERVER4}:5398"], "timeout": 60.0}, process={"drain_timeout": 1})
    )
    counts = {"associations": 10_000, "flows": 19_900, "names": 15_000}
    asks: dict[str, Ask] = {
        "associations": lambda _: request5("0.0.0.0", 0, UDP),
        "flows": lambda _: request5(SERVER4, PORT + 2),
        "names": lambda number: request5(f"n{number}.example.net", PORT + 1),
    }
    socks: list[socket.socket] = []
    try:
        before = {row["process"]: resident(row["pid"]) for row in workers(gateway)}
        taken(lab, counts[what], asks[what], socks)
        for _ in range(5):  # each within the time that these sockets wait: 5 s
            with lab.connect("client2", ROUTER_IN4, 1080) as sock:
                assert ask5(sock, SERVER4, PORT + 1)[0] == 0
            listener.accept()[0].close()
            with lab.connect("client2", ROUTER_IN4, 1080) as sock:
                assert ask5(sock, "0.0.0.0", 0, UDP)[0] == 0
        assert any("limits." in line or "event=client.limit" in line for line in gateway.log_lines())
        grown = {row["process"]: resident(row["pid"]) - before[row["process"]] for row in workers(gateway)}
        assert max(grown.values()) < 100_000, grown  # KiB; 576 MiB it was, of the names
    finally:
        for sock in (*socks, listener, names):
            sock.close()
        assert gateway.stop() == 0
        lab.stop(server, 1)


def resident(pid: int) -> int:
    """KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])

"""One client that takes all that it can, by the default configuration or nearly: its neighbours are served."""

from __future__ import annotations

import contextlib
import ftplib
import socket
import time
from pathlib import Path

import pytest

from tests.lab.lab import CLIENT2_6, ROUTER_IN4, SERVER4, SERVER6, Lab, Role
from tests.net.ftp_control import split
from tests.net.socks_wire import GREETING, ask5, request5
from tests.net.test_client_limits import more_addresses, workers

PORT = 7300


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_client_that_takes_all_it_can_by_default(lab: Lab) -> None:
    """Without any key: thousands of idle flows, and names of a silent server; another client is served meanwhile, and a
    worker's memory stays what it is."""
    listener = lab.listen("outside", SERVER4, PORT + 1)
    with lab.enter("outside"):
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((SERVER4, 5398))
    gateway = lab.start_gateway(
        lab.write_config(dns={"servers": [f"{SERVER4}:5398"], "timeout": 60.0}, process={"drain_timeout": 1})
    )
    socks: list[socket.socket] = []
    try:
        before = {row["process"]: resident(row["pid"]) for row in workers(gateway)}
        with lab.enter("inside"):
            for number in range(3000):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect((ROUTER_IN4, 1080))
                socks.append(sock)
                if number % 100 == 99:
                    time.sleep(0.02)  # the listener's backlog, which is no matter of this test
                    for one in socks[-100:]:
                        with contextlib.suppress(OSError):
                            one.send(GREETING + request5(f"n{number}-{one.fileno()}.example.net", PORT + 1))
        for _ in range(5):
            began = time.monotonic()
            with lab.connect("client2", ROUTER_IN4, 1080) as sock:
                assert ask5(sock, SERVER4, PORT + 1)[0] == 0
            listener.accept()[0].close()
            assert time.monotonic() - began < 1.0
        grown = {row["process"]: resident(row["pid"]) - before[row["process"]] for row in workers(gateway)}
        assert max(grown.values()) < 100_000, grown  # KiB; 576 MiB it was, of five times as many
    finally:
        for sock in (*socks, listener, names):
            sock.close()
        assert gateway.stop() == 0


def resident(pid: int) -> int:
    """KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])

"""Heads of HTTP CONNECT that are hostile or broken off, on the short way from accepting to the relay: the bounds are
those of SOCKS, and another client is always served."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.attackers import HALF_HEADS, HTTP_HEAD
from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import receive
from tests.net.steady_load import BANNER, Greeter

PORT, SILENT = 7777, 7778
TIMEOUT = 20.0
MOST = 3000  # handshakes of one client
TOGETHER = 200  # connections that are begun at once, for the listener's backlog
GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    socks = {"protocols": ["socks5", "socks4", "http"], "handshake_timeout": TIMEOUT}
    config = lab.write_config(socks=socks, process={"workers": 1}, limits={"handshakes": MOST})
    gateway = lab.start_gateway(config)
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> Iterator[None]:
    greeter = Greeter(lab, PORT)
    yield
    greeter.close()


def worker(gateway: Gateway) -> dict[str, int]:
    (row,) = [row for row in gateway.admin("status") if row["process"] == "worker-0"]
    return row


def resident(pid: int) -> int:
    """KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def served(lab: Lab) -> None:
    """Another client gets its connection."""
    with lab.connect("client2", ROUTER_IN4, 1080) as sock:
        sock.sendall(f"CONNECT {SERVER4}:{PORT} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert receive(sock, len(GRANTED + BANNER)) == GRANTED + BANNER


def began(lab: Lab, starts: Iterator[bytes], count: int) -> list[socket.socket]:
    """So many connections of the client inside, each with the beginning of a head."""
    socks: list[socket.socket] = []
    with lab.enter("inside"):
        while len(socks) < count:
            batch = []
            for _ in range(min(TOGETHER, count - len(socks))):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect((ROUTER_IN4, 1080))
                batch.append(sock)
            for sock in batch:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                poll.poll(5000)
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.send(next(starts))
            socks += batch
    return socks


def is_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.timeout(180)
def test_thousands_of_half_heads(lab: Lab, gateway: Gateway) -> None:
    """5,000 of one client, which dribble: no more than its handshakes are open, for no longer than a handshake may
    take; memory is bounded by the heads; another client is served all the time, and nothing is left."""
    served(lab)
    before = worker(gateway)
    descriptors = len(os.listdir(f"/proc/{before['pid']}/fd"))
    grown = resident(before["pid"])
    socks = began(lab, itertools.cycle(start for start, _ in HALF_HEADS), 5000)
    # Those that say nothing yet are handshakes too.
    try:
        lab.wait_for(lambda: sum(map(is_open, socks)) <= MOST, 10, "the others to be closed")
        assert sum(map(is_open, socks)) > MOST * 0.9
        assert worker(gateway)["handling"] <= MOST + 1
        until = time.monotonic() + TIMEOUT + 15
        number = 0
        while worker(gateway)["handling"]:  # as long as any of them is there
            assert time.monotonic() < until, "handshakes take longer than they may"
            number += 1
            for sock, (_, unit) in zip(socks, itertools.cycle(HALF_HEADS), strict=False):
                with contextlib.suppress(OSError):
                    sock.send(unit[number % len(unit) :][:1])
            served(lab)
        assert number > 5
        assert resident(before["pid"]) - grown < MOST * 24 + 20_000
        assert worker(gateway)["pid"] == before["pid"]
        assert [line for line in gateway.log_lines() if "event=socks.timeout" in line]
        lab.wait_for(lambda: len(os.listdir(f"/proc/{before['pid']}/fd")) <= descriptors + 8, 5, "their descriptors")
        assert not [line for line in gateway.log_lines() if "Traceback" in line]
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HTTP_HEAD + b"a:" + b"x" * 65536, 400),
        (HTTP_HEAD + b"a:\r\n" * 4000 + b"\r\n", 400),
        (HTTP_HEAD.replace(b"\r", b"") + b"\n" + b"\n" * 16384, 400),
        (HTTP_HEAD + b"a: b\n\r\n\r\n", 400),
        (HTTP_HEAD + b"\0: b\r\n\r\n", 400),
        (b"CONNECT " + b"\r\n\r\n", 400),
        (b"CONNECTION 1.2.3.4:5 HTTP/1.1\r\n\r\n", 405),
        (b"C" * 20000, 400),
    ],
    ids=["64 KiB", "fields", "LF", "LF in a field", "NUL", "no target", "another method", "no line"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
def test_a_head_that_is_none(lab: Lab, gateway: Gateway, head: bytes, status: int, whole: bool) -> None:
    """It is refused with its status, whatever is still to be read."""
    with lab.connect("inside", ROUTER_IN4, 1080) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # it closes while there is more to come
            for at in range(0, len(head), len(head) if whole else 1 + len(head) // 50):
                sock.sendall(head[at : at + (len(head) if whole else 1 + len(head) // 50)])
        assert receive(sock, 12) == f"HTTP/1.1 {status}".encode()
    served(lab)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("target", ["open", "closed", "silent", "name"])
@pytest.mark.parametrize("end", ["reset", "close", "shut"])
def test_clients_that_go_in_the_middle(lab: Lab, gateway: Gateway, target: str, end: str) -> None:
    """At each byte of the head, and behind it while the server is being connected: nothing is left of them."""
    hosts = {
        "open": f"{SERVER4}:{PORT}",
        "closed": f"{SERVER4}:9",
        "silent": f"203.0.113.77:{SILENT}",  # nobody is there
        "name": f"localhost.invalid:{PORT}",
    }
    head = f"CONNECT {hosts[target]} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    before = worker(gateway)
    descriptors = len(os.listdir(f"/proc/{before['pid']}/fd"))
    cuts = range(1, len(head) + 1) if target in ("open", "closed") else (1, len(head) - 1, len(head))
    for cut in cuts:
        sock = lab.connect("inside", ROUTER_IN4, 1080)
        sock.sendall(head[:cut])
        if end == "reset":
            reset(sock)
        else:
            if end == "shut":
                sock.shutdown(socket.SHUT_WR)
            sock.close()
    served(lab)
    lab.wait_for(lambda: worker(gateway)["handling"] == 0 and worker(gateway)["flows"] == 0, 40, "them to be gone")
    assert len(os.listdir(f"/proc/{before['pid']}/fd")) <= descriptors + 2
    assert worker(gateway)["pid"] == before["pid"]
    assert not [line for line in gateway.log_lines() if "Traceback" in line]

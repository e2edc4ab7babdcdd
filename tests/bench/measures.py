"""What is measured of one peer, by the load generator (load.c) at both ends of it."""

from __future__ import annotations

import contextlib
import ftplib
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers import PORT, Peer, beside_each_other, router_pids
from tests.lab.lab import CLIENT4, SERVER4, Lab

CONCURRENT = 100
STREAMS = 8
ECHO_FLOWS = 1000
ECHO_RATE = 4000  # a second, over all flows
FEW, MANY = 1000, 8000
LOG_ROUNDS, LOG_SECONDS = 6, 0.7  # of each of both gateways
HEAD_START = 0.5  # seconds for conntrack and TIME_WAIT of the measure before to go
FTP_FILE = 2 << 30  # bytes; sparse

Results = Iterator[tuple[str, float]]  # one by one: what was measured before an error counts


class Missed(Exception):
    """A peer that did not do what is measured; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load generator in a lab. `seconds`: how long each measure lasts."""

    lab: Lab
    program: Path
    seconds: float

    def client(self, what: str, peer: Peer, *arguments: object) -> dict[str, Any]:
        """Run one measure as the client; what it says."""
        argv = [self.program, what, peer.via, SERVER4, PORT, *arguments]
        said = self.lab.run("inside", [str(word) for word in argv], timeout=90).stdout
        answer: dict[str, Any] = json.loads(said)
        return answer

    @contextlib.contextmanager
    def held(self, peer: Peer, flows: int) -> Iterator[int]:
        """Idle flows through the peer; how many there are."""
        argv = [str(self.program), "hold", peer.via, SERVER4, str(PORT), str(flows)]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.lab.ns("inside"), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["opened"])
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait(30)


def prepare(lab: Lab) -> None:
    """Let neither end run out of ports, and conntrack not of entries: not what is measured here."""
    for role in ("inside", "router", "outside"):
        lab.run(role, ["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1"])
    lab.run("router", ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1"])
    lab.run("router", ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1"])


def connections(load: Load, peer: Peer) -> Results:
    """Connections/s, and the peer's CPU for one of them."""
    time.sleep(HEAD_START)
    before = _cpu(router_pids(load.lab))
    said = load.client("rate", peer, CONCURRENT, load.seconds)
    yield "conn/s", said["rate"]
    if peer.front != "kernel":
        yield "cpu µs/conn", (_cpu(router_pids(load.lab)) - before) / said["done"] * 1e6


def streams(load: Load, peer: Peer) -> Results:
    """Gbit/s, and the peer's CPU for a gigabyte."""
    for count in (1, STREAMS):
        for way in ("down", "up"):
            before = _cpu(router_pids(load.lab))
            said = load.client("stream", peer, count, load.seconds, way)
            yield f"{count} {way}", said["gbit"]
            if count == 1 and way == "down" and peer.front != "kernel":
                yield "cpu s/GB", (_cpu(router_pids(load.lab)) - before) / (said["bytes"] / 1e9)


def latency(load: Load, peer: Peer) -> Results:
    """64-byte echoes, microseconds."""
    said = load.client("echo", peer, ECHO_FLOWS, load.seconds, ECHO_RATE)
    if "p99" not in said:
        raise Missed(f"{said['opened']} of {ECHO_FLOWS} flows opened")
    yield "p50", said["p50"]
    yield "p99", said["p99"]


def idle(load: Load, peer: Peer) -> Results:
    """Resident memory (proportional set size) for an idle flow, and the connection rate beside many of them."""
    if peer.front == "kernel":
        return
    for flows in (FEW, MANY) if peer.scales else (FEW,):
        before = _memory(load.lab)
        with load.held(peer, flows) as opened:
            if opened < flows:
                raise Missed(f"{opened} of {flows} idle flows opened")
            time.sleep(HEAD_START)
            yield f"KiB/flow, {flows}", (_memory(load.lab) - before) / opened
            if flows == MANY:
                yield "conn/s, 8000 idle", load.client("rate", peer, CONCURRENT, load.seconds)["rate"]
        time.sleep(HEAD_START)


def ftp(lab: Lab, active: bool) -> float:
    """Gbit/s of one file from vsftpd: passive is a connection of plain NAT, active one through a pinhole."""
    with lab.enter("inside"):
        client = ftplib.FTP(timeout=20)
        client.connect(SERVER4, 21)
        client.login()
        client.set_pasv(not active)
        client.voidcmd("TYPE I")
        if active:
            client.sendport = lambda host, port: client.sendcmd(  # type: ignore[method-assign]
                "PORT " + ",".join([*CLIENT4.split("."), str(port >> 8), str(port & 255)])
            )
        data = client.transfercmd("RETR pub/sparse")
    began = time.monotonic()
    count = 0
    with data:
        buffer = bytearray(1 << 18)
        while got := data.recv_into(buffer, 0, socket.MSG_TRUNC):
            count += got
    elapsed = time.monotonic() - began
    client.close()
    assert count == FTP_FILE
    return count * 8 / elapsed / 1e9


def log_share(load: Load) -> float:
    """Which part of the CPU for a connection its two log lines take: two gateways in turn, one of them without."""
    with contextlib.ExitStack() as stack:
        spent: dict[str, list[float]] = {}
        pids: dict[str, list[int]] = {}
        both = beside_each_other()
        for peer in both:
            before = router_pids(load.lab)
            stack.enter_context(peer.running(load.lab))
            pids[peer.name] = [pid for pid in router_pids(load.lab) if pid not in before]
        for round_ in range(LOG_ROUNDS):
            for peer in both if round_ % 2 else reversed(both):
                cpu = _cpu(pids[peer.name])
                done = load.client("rate", peer, CONCURRENT, LOG_SECONDS)["done"]
                spent.setdefault(peer.name, []).append((_cpu(pids[peer.name]) - cpu) / done)
    with_lines, without = (statistics.median(spent[peer.name]) for peer in both)
    return 1 - without / with_lines


def _cpu(pids: Sequence[int]) -> float:
    """Seconds of processor time that processes have used, with those that they have waited for."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _memory(lab: Lab) -> float:
    """KiB resident of all processes in the router, what is shared counted once."""
    total = 0
    for pid in router_pids(lab):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return float(total)

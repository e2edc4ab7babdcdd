"""`python -m tests.bench.floor [ROUNDS [SECONDS]]`: what a SOCKS connection costs at the least, and what it does cost.

Connections/s and CPU of the barest proxies that there can be, in C (floor.c) and in Python (floor_proxy.py), of the
gateway and of other servers, in turn; and plain kernel NAT, which shows what the load and the two networks cost. The
CPU of a connection is steadier than the rate where others use the machine too. Then the same for one stream, where
the barest is floor_splice.c.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench import measures
from tests.bench.peers import PORT, SOCKS_PORT, Peer, peers, router_pids
from tests.lab.lab import ROUTER_IN4, Lab, LabError

HERE = Path(__file__).parent
BESIDE = ("kernel NAT", "algate, 1 worker", "algate, 2 workers", "hev-socks5-server", "microsocks", "danted")
TICKS = 100  # a second: the unit of /proc/PID/stat
PIPE = 1 << 20

Row = tuple[float, float, float]


def main(rounds: int = 5, seconds: float = 2.0) -> None:
    """Measure and print a table, medians of all rounds."""
    rows: dict[str, list[Row]] = defaultdict(list)
    streams: dict[str, list[Row]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        programs = {name: Path(directory, name) for name in ("load", "floor", "floor_splice")}
        for name, program in programs.items():
            subprocess.run(["gcc", "-O2", "-pthread", "-o", program, HERE / f"{name}.c"], check=True)
        floors = [
            _floor("bare C, 1 process", programs["floor"], "1"),
            _floor("bare C, 2 processes", programs["floor"], "2"),
            _floor("bare Python, 1 process", sys.executable, HERE / "floor_proxy.py", "1"),
            _floor("bare Python, 2 processes", sys.executable, HERE / "floor_proxy.py", "2"),
        ]
        spliced = _floor("bare C, splice", programs["floor_splice"], str(PIPE))
        measures.prepare(lab)
        server = lab.popen("outside", [programs["load"], "serve", str(PORT)])
        load = measures.Load(lab, programs["load"], seconds)
        others = [peer for peer in peers() if peer.name in BESIDE]
        for _ in range(rounds):
            _each([*floors, *others], lab, rows, lambda peer: _rate(load, peer))
            _each([spliced, *others[:-2]], lab, streams, lambda peer: _stream(load, peer))
        lab.stop(server)
    _show("conn/s", "user, µs/conn", "system, µs/conn", rows)
    _show("1 stream down, Gbit/s", "up, Gbit/s", "CPU ms/GB, both", streams)


def _each(those: Sequence[Peer], lab: Lab, rows: dict[str, list[Row]], measure: Callable[[Peer], Row]) -> None:
    for peer in those:
        try:
            with peer.running(lab):
                time.sleep(measures.HEAD_START)
                rows[peer.name].append(measure(peer))
        except LabError as error:
            print(f"{peer.name}: {error}", file=sys.stderr)


def _show(first: str, second: str, third: str, rows: dict[str, list[Row]]) -> None:
    print(f"| | {first} | {second} | {third} |\n| --- | ---: | ---: | ---: |")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{median(column):,.4g}" for column in zip(*row, strict=True)) + " |")
    print()


def _floor(name: str, program: str | Path, *words: str | Path) -> Peer:
    argv = [program, *words[:-1], ROUTER_IN4, str(SOCKS_PORT), words[-1]]

    def start(lab: Lab) -> Callable[[], object]:
        process = lab.popen("router", argv)
        return lambda: _stop(lab, process)

    return Peer(name, "socks", start)


def _stop(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    """It, and those that it has forked."""
    for pid in router_pids(lab):
        if pid != process.pid:
            subprocess.run(["kill", str(pid)], check=False)
    lab.stop(process)


def _stream(load: measures.Load, peer: Peer) -> Row:
    before = sum(_cpu(load.lab))
    down = load.client("stream", peer, 1, load.seconds, "down")
    up = load.client("stream", peer, 1, load.seconds, "up")
    used = (sum(_cpu(load.lab)) - before) / TICKS
    return down["gbit"], up["gbit"], used * 1e3 / ((down["bytes"] + up["bytes"]) / 1e9)


def _rate(load: measures.Load, peer: Peer) -> Row:
    before = _cpu(load.lab)
    said = load.client("rate", peer, measures.CONCURRENT, load.seconds)
    after = _cpu(load.lab)
    user, system = ((new - old) / TICKS / said["done"] * 1e6 for new, old in zip(after, before, strict=True))
    return said["rate"], user, system


def _cpu(lab: Lab) -> tuple[int, int]:
    """User and system time of all processes in the router and of their children that have ended, in ticks."""
    user = system = 0
    for pid in router_pids(lab):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
    return user, system


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))

"""`python -m tests.bench [--quick] [--rounds N] [--seconds S] [--only WORD] [--measure NAME]`."""

from __future__ import annotations

import argparse
import ftplib
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from tests.bench import measures, report
from tests.bench.peers import PORT, Peer, peers, versions
from tests.lab.lab import Lab, LabError

HERE = Path(__file__).parent
MEASURES = {
    "connections": measures.connections,
    "streams": measures.streams,
    "latency": measures.latency,
    "idle": measures.idle,
}
Samples = dict[str, dict[str, list[float]]]


def main() -> int:
    """Run it; 0 unless something could not be measured at all."""
    arguments = _arguments()
    rounds = 1 if arguments.quick else arguments.rounds
    seconds = 1.0 if arguments.quick else arguments.seconds
    chosen = [peer for peer in peers() if not arguments.only or any(word in peer.name for word in arguments.only)]
    samples: Samples = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        program = Path(directory, "load")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", program, HERE / "load.c"], check=True)
        measures.prepare(lab)
        server = lab.popen("outside", [program, "serve", str(PORT)])
        load = measures.Load(lab, program, seconds)
        for turn in range(rounds):
            for peer in chosen:
                try:
                    _measure(load, peer, arguments.measure, samples, f"round {turn + 1}/{rounds}")
                except LabError as error:  # the others are still worth measuring
                    print(f"  {_first_line(error)}", file=sys.stderr)
            if not arguments.measure or "ftp" in arguments.measure:
                try:
                    _ftp(lab, samples)
                except (LabError, OSError, ftplib.Error) as error:
                    print(f"  ftp: {error}", file=sys.stderr)
            if not arguments.only and not arguments.measure and not arguments.quick:
                report.write(_medians(samples), samples, versions(chosen), turn + 1, seconds)
        lab.stop(server)
    report.show(_medians(samples))
    return 0


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _medians(samples: Samples) -> dict[str, dict[str, float]]:
    return {name: {key: median(values) for key, values in row.items()} for name, row in samples.items()}


def _measure(load: measures.Load, peer: Peer, names: list[str], samples: Samples, progress: str) -> None:
    print(f"{progress}: {peer.name}", file=sys.stderr, flush=True)
    for name, measure in MEASURES.items():
        if names and name not in names:
            continue
        with peer.running(load.lab) as pids:  # anew for each, so that no measure finds the traces of another
            try:
                for key, value in measure(load, peer, pids).items():
                    samples[peer.name][key].append(value)
            except (AssertionError, ValueError, subprocess.SubprocessError) as error:
                print(f"  {name}: {_first_line(error)}", file=sys.stderr)


def _ftp(lab: Lab, samples: Samples) -> None:
    """FTP data: the same server and client, once through plain NAT and once through a kernel pinhole."""
    server = lab.vsftpd()
    with (server.root / "pub/sparse").open("wb") as file:
        file.truncate(measures.FTP_FILE)
    os.chmod(server.root / "pub/sparse", 0o644)
    measures.ftp(lab, active=False)  # the file comes into the cache
    samples["kernel NAT"]["FTP data"].append(measures.ftp(lab, active=False))
    gateway = lab.start_gateway()
    samples["algate, 2 workers, transparent"]["FTP data"].append(measures.ftp(lab, active=True))
    gateway.stop()
    server.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="one round of one second: for development")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("BENCH_ROUNDS", "5")))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("BENCH_SECONDS", "3")))
    parser.add_argument("--only", action="append", help="only peers with this word in their name")
    parser.add_argument("--measure", action="append", help=f"only these: {', '.join(MEASURES)}, ftp", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.bench [--quick] [--rounds N] [--seconds S] [--only WORD] [--measure NAME] [--no-sections]`."""

from __future__ import annotations

import argparse
import contextlib
import ftplib
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.bench import measures, report, sections
from tests.bench.peers import PORT, Peer, allow_descriptors, peers, versions
from tests.lab.lab import Lab, LabError

HERE = Path(__file__).parent
FTP_TRANSFERS = 3  # of each kind in a round
DESCRIPTORS = 100_000  # for each process, where the host allows it: 8,000 flows are more than one each
MEASURES = {
    "connections": measures.connections,
    "streams": measures.streams,
    "latency": measures.latency,
    "idle": measures.idle,
}
Samples = dict[str, dict[str, list[float]]]
Notes = dict[str, None]  # what could not be measured, in order and once


def main() -> int:
    """Run it; 0 unless something could not be measured at all."""
    arguments = _arguments()
    if arguments.sections:
        _sections(write=True)
        return 0
    rounds = 1 if arguments.quick else arguments.rounds
    seconds = 1.0 if arguments.quick else arguments.seconds
    chosen = [peer for peer in peers() if not arguments.only or any(word in peer.name for word in arguments.only)]
    whole = not arguments.only and not arguments.measure
    samples: Samples = defaultdict(lambda: defaultdict(list))
    notes: Notes = {}
    run = report.Run(samples, versions(chosen), notes, seconds, allow_descriptors(DESCRIPTORS))
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        program = Path(directory, "load")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", program, HERE / "load.c"], check=True)
        measures.prepare(lab)
        server = lab.popen("outside", [program, "serve", str(PORT)])
        load = measures.Load(lab, program, seconds)
        for round_ in range(rounds):
            began = time.monotonic()
            for peer in chosen:
                print(f"round {round_ + 1}/{rounds}: {peer.name}", file=sys.stderr, flush=True)
                _measure(load, peer, arguments.measure, samples, notes)
            if not arguments.measure or "ftp" in arguments.measure:
                _ftp(lab, samples, notes, round_)
            if not arguments.measure or "log" in arguments.measure:
                try:
                    samples[report.LOGGING]["log share"].append(measures.log_share(load))
                except (LabError, ArithmeticError) as error:
                    _failed(notes, "log share", error)
            print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
            if whole and not arguments.quick:
                report.write(run, round_ + 1)
        lab.stop(server)
    report.show(run)
    if whole and not arguments.no_sections:
        _sections(write=not arguments.quick)
    return 0


def _sections(*, write: bool) -> None:
    said = sections.run()
    report.show_sections(said)
    if write:
        report.write_sections(said)


def _failed(notes: Notes, what: str, error: Exception) -> None:
    """The whole reason on the terminal, with the log that a lab's error brings along; its first line in the report."""
    print(f"  {what}: {error or type(error).__name__}", file=sys.stderr)
    notes[f"{what}: {next(iter(str(error).splitlines()), type(error).__name__)}"] = None


def _measure(load: measures.Load, peer: Peer, names: list[str], samples: Samples, notes: Notes) -> None:
    for name, measure in MEASURES.items():
        if names and name not in names:
            continue
        try:
            with peer.running(load.lab):  # anew for each, so that no measure finds the traces of another
                for key, value in measure(load, peer):
                    samples[peer.name][key].append(value)
        except (measures.Missed, LabError, ValueError, ArithmeticError, subprocess.SubprocessError) as error:
            _failed(notes, f"{peer.name}, {name}", error)


def _ftp(lab: Lab, samples: Samples, notes: Notes, round_: int) -> None:
    """FTP data: the same server and client, through plain NAT and through kernel pinholes."""
    plain, pinhole = samples["kernel NAT"]["FTP data"], samples["algate, 2 workers, transparent"]["FTP data"]
    with contextlib.ExitStack() as stack:
        try:
            server = lab.vsftpd()
            stack.callback(server.stop)
            with (server.root / "pub/sparse").open("wb") as file:
                file.truncate(measures.FTP_FILE)
            os.chmod(server.root / "pub/sparse", 0o644)
            measures.ftp(lab, active=False)  # the file comes into the cache
            for active in (False, True) if round_ % 2 else (True, False):  # who is first changes
                with contextlib.ExitStack() as gateways:
                    if active:
                        gateways.callback(lab.start_gateway().stop)
                    found = [measures.ftp(lab, active) for _ in range(FTP_TRANSFERS)]
                (pinhole if active else plain).extend(found)
        except (LabError, OSError, ftplib.Error) as error:
            _failed(notes, "FTP data", error)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="one round of one second: for development")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("BENCH_ROUNDS", "4")))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("BENCH_SECONDS", "1.5")))
    parser.add_argument("--only", action="append", help="only peers with this word in their name")
    parser.add_argument("--measure", action="append", help=f"only these: {', '.join(MEASURES)}, ftp, log", default=[])
    parser.add_argument("--no-sections", action="store_true", help="only the table")
    parser.add_argument("--sections", action="store_true", help="only what has no peer, at the end of it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

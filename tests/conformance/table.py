"""A conformance table of a protocol: what is tried, in each way from inside to outside, and where the table is put."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.lab import Lab, LabError

Prepare = Callable[[Lab], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Trial:
    """Something that has to work, or must not: `title`; `attempt` raises if it is not so."""

    title: str
    attempt: Callable[[Lab], None]


@contextlib.contextmanager
def plain_nat(lab: Lab) -> Iterator[None]:
    """What the router does by itself."""
    yield


def kernel_helper(name: str, protocol: str, port: int, programs: Sequence[str] = ("iptables", "ip6tables")) -> Prepare:
    """The kernel's helper `name`, attached to what goes to `port`. `programs`: of the families that it knows."""

    @contextlib.contextmanager
    def prepare(lab: Lab) -> Iterator[None]:
        rule = ["PREROUTING", "-p", protocol, "--dport", str(port), "-j", "CT", "--helper", name]
        for program in programs:
            lab.run("router", [program, "-t", "raw", "-A", *rule])
        try:
            yield
        finally:
            for program in programs:
                lab.run("router", [program, "-t", "raw", "-D", *rule])

    return prepare


def gateway(**sections: Any) -> Prepare:
    """algate, with these sections of its configuration."""

    @contextlib.contextmanager
    def prepare(lab: Lab) -> Iterator[None]:
        running = lab.start_gateway(lab.write_config(**sections))
        try:
            yield
        finally:
            running.stop()

    return prepare


def table(lab: Lab, trials: Sequence[Trial], ways: Mapping[str, Prepare]) -> tuple[list[str], list[str]]:
    """The table's lines, and what failed with algate."""
    cells: dict[tuple[str, str], str] = {}
    failed: list[str] = []
    for name, prepare in ways.items():
        lab.run("router", ["conntrack", "-F"])  # a connection keeps the way that it began with
        with prepare(lab):
            for trial in trials:
                try:
                    trial.attempt(lab)
                    cells[name, trial.title] = "yes"
                except (AssertionError, LabError, OSError) as error:
                    cells[name, trial.title] = "no"
                    said = f"{name}: {trial.title}: {type(error).__name__} {str(error)[:300]}"
                    print(said, file=sys.stderr, flush=True)
                    if name.startswith("algate"):
                        failed.append(said)
    lines = ["| | " + " | ".join(ways) + " |", "| --- " * (1 + len(ways)) + "|"]
    for trial in trials:
        lines.append(f"| {trial.title} | " + " | ".join(cells[name, trial.title] for name in ways) + " |")
    yes = [sum(cells[name, trial.title] == "yes" for trial in trials) for name in ways]
    lines.append(f"| **of {len(trials)}** | " + " | ".join(map(str, yes)) + " |")
    return lines, failed


def main(module: str, page: Path, trials: Sequence[Trial], ways: Mapping[str, Prepare], arguments: list[str]) -> int:
    """Try everything in a lab, and put the table into `page` (unless `--check`); the exit code."""
    began = time.monotonic()
    with Lab() as lab:
        lines, failed = table(lab, trials, ways)
    text = "\n".join(lines)
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if "--check" not in arguments:
        begin, end = f"<!-- table: made by python -m {module} -->", "<!-- end of table -->"
        old = page.read_text()
        before, after = old[: old.index(begin)], old[old.index(end) :]
        page.write_text(f"{before}{begin}\n\n{text}\n\n{after}")
    return 1 if failed else 0

"""The results: a table on the terminal, docs/benchmarks.md, and a plot."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table as RichTable

from tests.bench.sections import Section

DOCS = Path(__file__).parents[2] / "docs"
TABLE, SECTIONS = "bench", "bench sections"  # marks of docs/benchmarks.md
COLUMNS = {
    "conn/s": "conn/s",
    "cpu µs/conn": "CPU µs/conn",
    "1 down": "1 stream down, Gbit/s",
    "1 up": "1 stream up, Gbit/s",
    "8 down": "8 streams down, Gbit/s",
    "8 up": "8 streams up, Gbit/s",
    "cpu s/GB": "CPU s/GB",
    "p50": "echo p50, µs",
    "p99": "echo p99, µs",
    "KiB/flow, 1000": "KiB/flow at 1,000",
    "KiB/flow, 8000": "KiB/flow at 8,000",
    "conn/s, 8000 idle": "conn/s beside 8,000 idle",
    "FTP data": "FTP data, Gbit/s",
    "log share": "log's share of CPU/conn",
}
LOG_SHARE = 0.05
PLOTTED = ("conn/s", "1 down", "8 down", "KiB/flow, 1000")
OURS, HEV = "algate, 2 workers", "hev-socks5-server"
TRANSPARENT, NAT = "algate, 2 workers, transparent", "kernel NAT"
LOGGING = "algate, 1 worker"

Table = Mapping[str, Mapping[str, float]]
Samples = Mapping[str, Mapping[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured, of what, how: `notes` say what could not be, `seconds` is how long each measure takes, and
    `descriptors` how many a process may have."""

    samples: Samples
    versions: Mapping[str, str]
    notes: Iterable[str]
    seconds: float
    descriptors: int

    @property
    def table(self) -> Table:
        """The medians."""
        return {
            name: {key: median(values) for key, values in row.items() if values} for name, row in self.samples.items()
        }


def goals(table: Table) -> list[tuple[str, str, float, bool]]:
    """Each goal that can be told from the results: (measure, goal, what was reached, whether that is enough)."""
    found: list[tuple[str, str, float, bool]] = []

    def add(what: str, ours: str, key: str, other: str, least: float, other_key: str = "", most: bool = False) -> None:
        mine, theirs = table.get(ours, {}).get(key), table.get(other, {}).get(other_key or key)
        if mine is None or not theirs:
            return
        ratio = mine / theirs
        sign = "<=" if most else ">="
        reached = ratio <= least if most else ratio >= least
        whom = "with none" if other == ours else other
        found.append((what, f"{sign} {least:g} x {whom}", ratio, reached))

    for other, least in ((HEV, 1.0), ("microsocks", 1.5), ("danted", 5.0)):
        add("connections/s", OURS, "conn/s", other, least)
    for way in ("down", "up"):
        add(f"one stream, {way}", OURS, f"1 {way}", HEV, 1.2)
        add(f"one stream, {way}", OURS, f"1 {way}", NAT, 0.6)
        add(f"eight streams, {way}", OURS, f"8 {way}", HEV, 1.0)
        add(f"transparent, one stream, {way}", TRANSPARENT, f"1 {way}", "redsocks", 1.5)
    add("transparent, connections/s", TRANSPARENT, "conn/s", "redsocks", 1.5)
    add("FTP active data", TRANSPARENT, "FTP data", NAT, 0.97)
    add("echo p99", OURS, "p99", HEV, 1.2, most=True)
    for flows in (1000, 8000):
        key = f"KiB/flow, {flows}"
        if key in table.get(OURS, {}):
            found.append((f"KiB/flow at {flows}", "<= 4", table[OURS][key], table[OURS][key] <= 4))
        add(f"memory/flow at {flows}", OURS, key, HEV, 1.0, most=True)
    add("connections/s beside 8,000 idle", OURS, "conn/s, 8000 idle", OURS, 0.9, "conn/s")
    if "log share" in table.get(LOGGING, {}):
        share = table[LOGGING]["log share"]
        found.append(("log's share of a connection's CPU", f"<= {LOG_SHARE}", share, share <= LOG_SHARE))
    return found


def show(run: Run) -> None:
    """Print the results and the goals."""
    table = run.table
    columns = [key for key in COLUMNS if any(key in row for row in table.values())]
    shown = RichTable("peer", *(COLUMNS[key] for key in columns))
    for name, row in table.items():
        shown.add_row(name, *(_text(row.get(key)) for key in columns))
    console = Console(width=240)
    console.print(shown)
    met = RichTable("measure", "goal", "reached", "")
    for what, goal, ratio, reached in goals(table):
        met.add_row(what, goal, f"{ratio:.2f}", "yes" if reached else "[red]no")
    console.print(met)


def write(run: Run, rounds: int) -> None:
    """Put the results into docs/benchmarks.md, between their marks, and draw docs/benchmarks.svg."""
    table = run.table
    columns = [key for key in COLUMNS if any(key in row for row in table.values())]
    lines = [
        f"{_machine()} A process may have {run.descriptors:,} descriptors.",
        f"Command: `sudo make bench` ({rounds} rounds, {run.seconds:g} s a measure; medians).",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in run.versions.items()) + ".",
        "",
        "| | " + " | ".join(COLUMNS[key] for key in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
        *(f"| {name} | " + " | ".join(_text(row.get(key)) for key in columns) + " |" for name, row in table.items()),
        "",
        "| measure | goal | reached | |",
        "| --- | --- | ---: | --- |",
        *(f"| {what} | {goal} | {r:.2f} | {'yes' if ok else '**no**'} |" for what, goal, r, ok in goals(table)),
        "",
        f"Between rounds, (largest - smallest) / median: {_spread(run.samples)}.",
        *("", *(f"- Not measured: {note}." for note in run.notes)),
    ]
    _put(TABLE, lines)
    (DOCS / "benchmarks.svg").write_text(plot(table))


def show_sections(said: Sequence[tuple[Section, str]]) -> None:
    """Print what the sections said."""
    for section, text in said:
        print(f"\n{section.title} ({section.command}):\n{text}")


def write_sections(said: Sequence[tuple[Section, str]]) -> None:
    """Put what the sections said into docs/benchmarks.md."""
    lines: list[str] = []
    for section, text in said:
        lines += [f"**{section.title}**", "", f"    $ {section.command}"]
        lines += [*(f"    {line}" for line in text.splitlines()), ""]
    _put(SECTIONS, lines)


def _put(mark: str, lines: Sequence[str]) -> None:
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    path = DOCS / "benchmarks.md"
    head, rest = path.read_text().split(begin)
    path.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")


def plot(table: Table) -> str:
    """Bars for the measures that say most, as an SVG document."""
    bar, gap, label, width, head = 18, 5, 230, 420, 34
    parts, top = [], 0
    for key in PLOTTED:
        rows = [(name, row[key]) for name, row in table.items() if key in row]
        if not rows:
            continue
        most = max(value for _, value in rows) or 1
        parts.append(f'<text x="4" y="{top + 22}" class="h">{escape(COLUMNS[key])}</text>')
        for index, (name, value) in enumerate(rows):
            y = top + head + index * (bar + gap)
            kind = "us" if name.startswith("algate") else "peer"
            parts.append(f'<text x="{label - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            length = max(1.0, max(value, 0) / most * width)
            parts.append(f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}" class="{kind}"/>')
            parts.append(f'<text x="{label + length + 6:.1f}" y="{y + 13}">{_text(value)}</text>')
        top += head + len(rows) * (bar + gap) + 14
    style = (
        "text{font:12px sans-serif;fill:#333}.h{font-weight:bold;font-size:14px}.us{fill:#2b7a4b}.peer{fill:#9aa5b1}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{label + width + 70}" height="{top}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "\n".join(parts) + "</svg>\n"
    )


def _text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _spread(samples: Samples) -> str:
    found = sorted(
        ((max(values) - min(values)) / median(values), f"{name}, {COLUMNS[key]}")
        for name, row in samples.items()
        for key, values in row.items()
        if values and median(values)
    )
    return f"{median(spread for spread, _ in found):.0%} in the median, at the most {found[-1][0]:.0%} ({found[-1][1]})"


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, capture_output=True, text=True, check=False
    )
    system = Path("/etc/debian_version").read_text().strip()
    return (
        f"Machine: {os.cpu_count()} cores{f' ({model})' if model else ''}, Linux {platform.release()}, Debian {system},"
        f" Python {platform.python_version()}, algate {commit.stdout.strip()}."
    )

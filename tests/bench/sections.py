"""What is measured elsewhere than in the table: each a program of its own, run at the end of `make bench`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

TIMEOUT = 600  # seconds for each


@dataclass(frozen=True, slots=True)
class Section:
    """`python -m tests.bench.PROGRAM ARGUMENTS`; what it prints is the result."""

    title: str
    program: str
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As somebody types it."""
        return " ".join(["sudo .venv/bin/python -m", f"tests.bench.{self.program}", *self.arguments])


SECTIONS = (
    Section("Decisions on a request, by the number of rules", "policy"),
    Section("Kernel pinholes", "pinholes", ("--seconds", "5")),
    Section("Conversations over UDP", "pinholes", ("--udp", "--seconds", "5")),
    *(
        Section(f"Kernel pinholes: {kind}", "pinholes", ("--kind", kind, "--seconds", "3"))
        for kind in ("anybody", "mapping", "exchange", "gre")
    ),
    Section("Beside many mappings", "pinholes", ("--mappings", "10000", "--seconds", "5")),
    Section("A thousand pinholes a second for a minute", "pinholes", ("--per-second", "1000", "--seconds", "60")),
    Section("Datagrams of 172 bytes through a SOCKS UDP association", "udp_associate", ("20000", "5")),
    Section("SOCKS, HTTP CONNECT, and both inside TLS", "front_door"),
    Section("Programs through `algate exec`", "exec", ("--runs", "5")),
    Section("SIP messages through the pure module", "sip_messages"),
    Section("SIP calls through the router", "sip_calls"),
    Section("RTSP, IRC, TFTP, BitTorrent, PPTP", "protocols"),
)


def run() -> list[tuple[Section, str]]:
    """Each with what it said; of one that failed, that it failed."""
    found = []
    for section in SECTIONS:
        print(section.command, file=sys.stderr, flush=True)
        argv = [sys.executable, "-m", f"tests.bench.{section.program}", *section.arguments]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        except subprocess.SubprocessError as error:
            print(f"  {error}: {(getattr(error, 'stderr', '') or '')[-2000:]}", file=sys.stderr)
            found.append((section, "failed"))
        else:
            found.append((section, done.stdout.strip()))
    return found

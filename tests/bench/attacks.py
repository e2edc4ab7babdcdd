"""What an attack does to everybody else: `python -m tests.bench.attacks [--seconds S] [--only WORD] [--json FILE]`.

In the lab one client (`inside`, or a server or stranger outside) attacks as hard as it can (tests/lab/attackers.py),
while another one (`client2`) connects through SOCKS to an echo server, a hundred times a second, and a third transfer
runs. A row has the median and the 99th percentile of that connect (with the first byte echoed) while all is quiet and
under the attack, the part that was served, the processes that were replaced, and whether every byte of the transfer was
right. These clients and their server are other machines in truth, so they do not wait here for a processor that the
gateway keeps busy (SCHED_FIFO, also while all is quiet).

With `--before FILE` (the `--json` of an earlier run) and `--write` the table goes into docs/threat-model.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.lab.attackers import (
    ATTACKS,
    BULK,
    ECHO,
    SEED,
    STEP,
    exactly,
    in_the_foreground,
    running,
    sections,
    servers,
    socks,
)
from tests.lab.kerberos import Kerberos
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab, Role

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/threat-model.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
PACE = 0.01  # seconds from one connect to the next
QUIET = 5.0  # seconds of measuring without an attack


def measure(seconds: float) -> None:
    """Connect again and again; say how long it took, as JSON."""
    in_the_foreground()
    times: list[float] = []
    tries = 0
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        tries += 1
        with contextlib.suppress(OSError), socks(SERVER4, ECHO) as sock:
            sock.sendall(b"x")
            exactly(sock, 1)
            times.append(time.monotonic() - began)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(max(0.0, PACE - (time.monotonic() - began)))
    times.sort()
    p50, p99, most = (_part(times, part) * 1e3 for part in (0.5, 0.99, 1.0))
    print(json.dumps({"tries": tries, "served": len(times), "p50": p50, "p99": p99, "most": most}))


def _part(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(len(times) * part))] if times else float("inf")


def transfer() -> None:
    """A download until it is told to stop by the end of its input: how many bytes, and whether all were right."""
    in_the_foreground()
    wanted = random.Random(SEED).randbytes(1 << 20)
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    count, right = 0, True
    try:
        with socks(SERVER4, BULK) as sock:
            sock.settimeout(15)
            while not stop.is_set():
                at = count % len(wanted)
                data = sock.recv(min(STEP, len(wanted) - at))
                right = right and bool(data) and data == wanted[at : at + len(data)]
                count += len(data)
                if not data:
                    break
    except OSError:
        right = False
    print(json.dumps({"bytes": count, "right": right}), flush=True)
    os._exit(0)  # a thread still reads


# --- the bench ------------------------------------------------------------------------------------------------------


def asked(lab: Lab, role: Role, *arguments: str, timeout: float) -> dict[str, Any]:
    said = lab.run(role, [sys.executable, "-m", "tests.bench.attacks", *arguments], timeout=timeout).stdout
    answer: dict[str, Any] = json.loads(said)
    return answer


def attack(lab: Lab, name: str, seconds: float, kerberos: Kerberos | None) -> dict[str, Any]:
    """One row."""
    gateway = lab.start_gateway(lab.write_config(**sections(name, kerberos)), deadline=60)
    try:
        before = set(gateway.pids())
        quiet = asked(lab, "client2", "measure", str(QUIET), timeout=QUIET + 30)
        argv = ["ip", "netns", "exec", lab.ns("client2"), sys.executable, "-m", "tests.bench.attacks", "transfer"]
        carried = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            env = kerberos.env if kerberos is not None else None
            with running(lab, ATTACKS[name].role, "attack", name, env=env):
                time.sleep(1)
                under = asked(lab, "client2", "measure", str(seconds), timeout=seconds + 30)
        finally:
            said, _ = carried.communicate(b"", timeout=30)
        replaced = len(before - set(gateway.pids()))
        return {"quiet": quiet, "under": under, "transfer": json.loads(said), "replaced": replaced}
    finally:
        gateway.stop()


def row(name: str, now: dict[str, Any], before: dict[str, Any] | None) -> str:
    def cells(found: dict[str, Any] | None) -> str:
        if found is None:
            return " | | "
        under, tries = found["under"], max(found["under"]["tries"], 1)
        right = "" if found["transfer"]["right"] else ", transfer broken"
        replaced = f", {found['replaced']} killed" if found["replaced"] else ""
        return f"{under['p50']:.1f} | {under['p99']:.1f} | {100 * under['served'] / tries:.0f} %{replaced}{right}"

    quiet = f"{now['quiet']['p50']:.1f} / {now['quiet']['p99']:.1f}"
    return f"| {ATTACKS[name].title} | {quiet} | {cells(before)} | {cells(now)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", choices=["measure", "transfer"], help=argparse.SUPPRESS)
    parser.add_argument("argument", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack")
    parser.add_argument("--only", action="append", help="attacks whose name has this word in it")
    parser.add_argument("--json", type=Path, help="write what was measured to a file")
    parser.add_argument("--before", type=Path, help="what was measured earlier, for the table")
    parser.add_argument("--write", action="store_true", help="write the table into docs/threat-model.md")
    arguments = parser.parse_args()
    match arguments.program:
        case "measure":
            measure(float(arguments.argument))
        case "transfer":
            transfer()
        case _:
            bench(arguments)
    return 0


def bench(arguments: argparse.Namespace) -> None:
    before = json.loads(arguments.before.read_text()) if arguments.before else {}
    found: dict[str, Any] = {}
    with Lab() as lab, contextlib.ExitStack() as stack:
        stack.enter_context(servers(lab))
        kerberos: Kerberos | None = None
        for name in ATTACKS:
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            if ATTACKS[name].extra and kerberos is None:
                kerberos = Kerberos(lab, ROUTER_IN4)
                stack.callback(kerberos.stop)
            found[name] = attack(lab, name, arguments.seconds, kerberos if ATTACKS[name].extra else None)
            print(row(name, found[name], before.get(name)), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.write:
        head = (
            "| Attack, at its worst | quiet: p50 / p99 | before: p50 | p99 | served | now: p50 | p99 | served |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        rows = [row(name, found[name], before.get(name)) for name in found]
        text = PAGE.read_text()
        start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        PAGE.write_text(text[:start] + "\n" + "\n".join([head, *rows]) + "\n" + text[end:])


if __name__ == "__main__":
    sys.exit(main())

"""What an attack does to everybody else: `python -m tests.bench.attacks [--seconds S] [--only WORD] [--json FILE]`.

In the lab one client (`inside`, or a server or stranger outside) attacks as hard as it can, while another one
(`client2`) connects through SOCKS to an echo server, a hundred times a second, and a third transfer runs. A row has the
median and the 99th percentile of that connect (with the first byte echoed) while all is quiet and under the attack, the
part that was served, the processes that were replaced, and whether every byte of the transfer was right.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab, Role

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/threat-model.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
SOCKS, ECHO, BULK, FTP, SIP, PUBLISHED, SINK = 1080, 7007, 7008, 21, 5060, 2121, 7009
PACE = 0.01  # seconds from one connect to the next
GIVE_UP = 5.0  # seconds for one of them
QUIET = 5.0  # seconds of measuring without an attack
STEP = 65536
SEED = 11
MESSAGE = b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 0\r\n\r\n"


# --- programs in the namespaces -------------------------------------------------------------------------------------


def forever(work: Callable[[], None], count: int = 1) -> None:
    """Run `work` again and again in so many threads, whatever becomes of its connections."""

    def run() -> None:
        while True:
            with contextlib.suppress(OSError):
                work()
            time.sleep(0.01)

    for _ in range(count - 1):
        threading.Thread(target=run, daemon=True).start()
    run()


def flood(host: str, port: int, unit: bytes, first: bytes = b"") -> None:
    """Say `unit` as fast as it is taken, and read what comes."""
    with socket.create_connection((host, port), 5) as sock:
        threading.Thread(target=_swallow, args=[sock], daemon=True).start()
        sock.sendall(first)
        piece = unit * max(1, 65536 // len(unit))
        while True:
            sock.sendall(piece)


def _swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(STEP):
            pass


def dribbled_message() -> None:
    """A SIP message of 7,000 headers, and then its body byte by byte."""
    with socket.create_connection((SERVER4, SIP), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"OPTIONS sip:a SIP/2.0\r\n" + b"a:\r\n" * 7000 + b"Content-Length: 30000\r\n\r\n")
        for _ in range(30000):
            sock.sendall(b"x")


def socks(host: str, port: int, command: int = 1) -> socket.socket:
    """A connection through the gateway."""
    sock = socket.create_connection((ROUTER_IN4, SOCKS), GIVE_UP)
    sock.settimeout(GIVE_UP)
    sock.sendall(b"\5\1\0")
    _exactly(sock, 2)
    sock.sendall(bytes((5, command, 0, 1)) + socket.inet_aton(host) + port.to_bytes(2, "big"))
    answer = _exactly(sock, 10)
    if answer[1]:
        sock.close()
        raise ConnectionRefusedError(f"SOCKS reply {answer[1]}")
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("closed")
        data += part
    return data


def association() -> None:
    """The control connection of a UDP association, flooded."""
    with socks("0.0.0.0", 0, 3) as sock:
        while True:
            sock.sendall(bytes(STEP))


def download() -> None:
    """A bulk transfer at full speed."""
    with socks(SERVER4, SINK) as sock:
        sock.sendall(b"d")
        while sock.recv(1 << 20):
            pass


def urgent() -> None:
    """A bulk transfer with urgent bytes in it."""
    with socks(SERVER4, SINK) as sock:
        sock.sendall(b"u")
        while True:
            sock.sendall(bytes(STEP))
            sock.send(b"!", socket.MSG_OOB)


def handshake() -> None:
    """Handshakes that go as far as the request and then dribble."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(100):
            sock = socket.create_connection((ROUTER_IN4, SOCKS), 5)
            stack.enter_context(sock)
            held.append(sock)
        for byte in b"\5\xff" + bytes(200):
            for sock in held:
                sock.send(bytes([byte]))


ATTACKS: dict[str, tuple[str, Role, Callable[[], None]]] = {
    "ftp-lines": (
        "FTP: one letter a line, from a client",
        "inside",
        lambda: forever(lambda: flood(SERVER4, FTP, b"A\n"), 4),
    ),
    "ftp-blank": (
        "FTP: blank lines, from a client",
        "inside",
        lambda: forever(lambda: flood(SERVER4, FTP, b"\n"), 4),
    ),
    "ftp-replies": (
        "FTP: replies that nobody waits for, from the server that a client has chosen",
        "inside",
        lambda: forever(lambda: flood(SERVER4, FTP, b"NOOP\r\n", b"FLOOD\r\n"), 4),
    ),
    "ftp-stranger": (
        "FTP: one letter a line, from a stranger at a published server",
        "stranger",
        lambda: forever(lambda: flood(ROUTER_OUT4, PUBLISHED, b"A\n"), 4),
    ),
    "sip-junk": (
        "SIP over TCP: junk",
        "inside",
        lambda: forever(lambda: flood(SERVER4, SIP, random.Random(1).randbytes(65536)), 4),
    ),
    "sip-headers": (
        "SIP over TCP: 7,000 headers, then the body byte by byte",
        "inside",
        lambda: forever(dribbled_message, 30),
    ),
    "sip-messages": (
        "SIP over TCP: small messages, 30 connections",
        "inside",
        lambda: forever(lambda: flood(SERVER4, SIP, MESSAGE), 30),
    ),
    "association": (
        "SOCKS: control connections of UDP associations, flooded",
        "inside",
        lambda: forever(association, 6),
    ),
    "handshakes": ("SOCKS: hundreds of handshakes that dribble", "inside", lambda: forever(handshake, 4)),
    "downloads": ("SOCKS: 20 downloads at full speed", "inside", lambda: forever(download, 20)),
    "urgent": ("SOCKS: urgent bytes in uploads at full speed", "inside", lambda: forever(urgent, 4)),
}


def serve(which: str) -> None:
    """The servers outside: "echo" and a transfer, or those of attacks (a sink and source, FTP, SIP)."""

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(STEP):
            sock.sendall(data)

    def bulk(sock: socket.socket) -> None:
        data = random.Random(SEED).randbytes(1 << 20)
        while True:
            for at in range(0, len(data), STEP):
                sock.sendall(data[at : at + STEP])
                time.sleep(STEP / 10e6)

    def sink(sock: socket.socket) -> None:
        if sock.recv(1) == b"d":
            while True:
                sock.sendall(bytes(1 << 20))
        _swallow(sock)

    def ftp(sock: socket.socket) -> None:
        sock.sendall(b"220 here\r\n")
        if b"FLOOD" in sock.recv(STEP):
            threading.Thread(target=_swallow, args=[sock], daemon=True).start()
            while True:
                sock.sendall(b"200\n" * 16384)
        _swallow(sock)

    ours, theirs = {ECHO: echo, BULK: bulk}, {SINK: sink, FTP: ftp, SIP: _swallow}
    for port, talk in (ours if which == "echo" else theirs).items():
        threading.Thread(target=_listen, args=[port, talk], daemon=True).start()
    threading.Event().wait()


def _listen(port: int, talk: Callable[[socket.socket], None]) -> None:
    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            talk(sock)

    listener = socket.create_server(("", port), backlog=1024)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=handle, args=[sock], daemon=True).start()


def measure(seconds: float) -> None:
    """Connect again and again; say how long it took, as JSON."""
    times: list[float] = []
    tries = 0
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        tries += 1
        with contextlib.suppress(OSError), socks(SERVER4, ECHO) as sock:
            sock.sendall(b"x")
            _exactly(sock, 1)
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


@contextlib.contextmanager
def running(lab: Lab, role: Role, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """This program in a namespace. Attackers, and the servers of attacks, are other machines in truth: here they get
    only what of the processors the gateway and everybody else leave."""
    least = [] if arguments[-1] == "echo" else ["nice", "-n", "19"]
    process = lab.popen(role, [*least, sys.executable, "-m", "tests.bench.attacks", *arguments])
    try:
        yield process
    finally:
        lab.stop(process, 0.5)


def asked(lab: Lab, role: Role, *arguments: str, timeout: float) -> dict[str, Any]:
    said = lab.run(role, [sys.executable, "-m", "tests.bench.attacks", *arguments], timeout=timeout).stdout
    answer: dict[str, Any] = json.loads(said)
    return answer


def attack(lab: Lab, name: str, seconds: float) -> dict[str, Any]:
    """One row."""
    publish = [{"outside": f"{ROUTER_OUT4}:{PUBLISHED}", "inside": f"{CLIENT4}:{FTP}"}]
    gateway = lab.start_gateway(lab.write_config(publish=publish))
    try:
        before = set(gateway.pids())
        quiet = asked(lab, "client2", "measure", str(QUIET), timeout=QUIET + 30)
        argv = ["ip", "netns", "exec", lab.ns("client2"), sys.executable, "-m", "tests.bench.attacks", "transfer"]
        carried = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            with running(lab, ATTACKS[name][1], "attack", name):
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
    return f"| {ATTACKS[name][0]} | {quiet} | {cells(before)} | {cells(now)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "program", nargs="?", choices=["serve", "attack", "measure", "transfer"], help=argparse.SUPPRESS
    )
    parser.add_argument("argument", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack")
    parser.add_argument("--only", action="append", help="attacks whose name has this word in it")
    parser.add_argument("--json", type=Path, help="write what was measured to a file")
    parser.add_argument("--before", type=Path, help="what was measured earlier, for the table")
    parser.add_argument("--write", action="store_true", help="write the table into docs/threat-model.md")
    arguments = parser.parse_args()
    match arguments.program:
        case "serve":
            serve(arguments.argument)
        case "attack":
            ATTACKS[arguments.argument][2]()
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
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        servers: list[tuple[Role, str]] = [("outside", "echo"), ("outside", "others"), ("inside", "others")]
        for role, which in servers:
            stack.enter_context(running(lab, role, "serve", which))
        lab.wait_for(lambda: _reachable(lab), 10, "the servers")
        for name in ATTACKS:
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            found[name] = attack(lab, name, arguments.seconds)
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


def _reachable(lab: Lab) -> bool:
    try:
        lab.connect("outside", SERVER4, ECHO).close()
        lab.connect("outside", SERVER4, SIP).close()
        lab.connect("inside", CLIENT4, FTP).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())

"""SIP calls through the router: `sudo .venv/bin/python -m tests.bench.sip_calls [--seconds N] [--most RATE]`.

The same load (sip_load.c: INVITE with two streams, 180, 200, ACK, BYE, 200) through plain NAT, the kernel's nf_nat_sip,
one packets process, and, if rtpengine is on PATH, Kamailio with rtpengine (the phones' outbound proxy then): the
highest rate at which no call failed, what setup took at a low rate, how long each message was on its way then (all six
of a call, one way), what a call costs the processes on the router, and RTP through an open pinhole and through
rtpengine. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.peers import router_pids
from tests.bench.udp_associate import cpu_seconds
from tests.conformance.sip import kernel_helper
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab
from tests.lab.sip_proxy import RTPENGINE, OutboundProxy
from tests.net.test_sip import Media
from tests.net.test_sip_addresses import Phone, Server, message, sdp

HERE = Path(__file__).parent
CLIENTS, FIRST = 100, 100
STREAMS = 2
RATES = (100, 200, 300, 400, 500, 600, 800, 1000, 1200, 1500, 2000, 3000, 5000)
QUIET, BUSY = 50, 200  # calls a second, for what a call waits
QUIET_SECONDS, BUSY_SECONDS = 15.0, 6.0  # 4,500 messages and more: a hundredth of them is enough to tell
ROUNDS = 3
MEDIA_CALLS = 50
# What one phone may do is no limit here: a hundred of them are to be a town.
CONFIG = {
    "pinhole": {"ports": "20000-65535", "per_client": 4096, "rate": 100_000},
    "alg": {"sip": {"rate": 1_000_000}},
    "process": {"workers": 1},
}
Figures = dict[str, float]


@contextlib.contextmanager
def nothing(lab: Lab) -> Iterator[None]:
    yield


@contextlib.contextmanager
def gateway(lab: Lab) -> Iterator[Gateway]:
    running = lab.start_gateway(lab.write_config(**CONFIG))
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def outbound_proxy(lab: Lab) -> Iterator[OutboundProxy]:
    running = OutboundProxy(lab)
    try:
        yield running
    finally:
        running.stop()


PROXY = "Kamailio with rtpengine"
WAYS: dict[str, Callable[[Lab], contextlib.AbstractContextManager[object]]] = {
    "plain NAT": nothing,
    "nf_nat_sip": kernel_helper,
    "algate": gateway,
}
if RTPENGINE:
    WAYS[PROXY] = outbound_proxy


def figures(text: str) -> Figures:
    words = text.partition("\ndelays")[0].split()
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def delays(*texts: str) -> Figures:
    """How long messages were on their way, in microseconds: half of them at most, and all but a hundredth."""
    found = sorted(int(word) for text in texts for word in text.partition("\ndelays")[2].split())
    return {"way_p50": found[len(found) // 2], "way_p99": found[len(found) * 99 // 100]} if found else {}


def load(lab: Lab, program: Path, rate: float, seconds: float, proxy: str = "") -> Figures:
    """One run of the load, with what the server saw. `proxy`: the address of the phones' outbound proxy."""
    log = lab.tmp / "serve.txt"
    log.unlink(missing_ok=True)
    server = lab.popen("outside", [program, "serve", SERVER4, "5060"], log=log)
    argv = [program, "call", SERVER4, "5060", FIRST, CLIENTS, rate, seconds, STREAMS]
    argv += [proxy] if proxy else []
    done = lab.run("inside", [str(word) for word in argv], timeout=seconds * 4 + 30)
    lab.stop(server)
    heard = log.read_text()
    return figures(done.stdout) | figures(heard) | delays(done.stdout, heard)


def most(
    lab: Lab, program: Path, seconds: float, highest: float, repaired: bool, proxy: str
) -> tuple[float, list[str]]:
    """The highest rate at which no call failed (nor was left unrepaired, if they are to be), and all that was tried."""
    best, tried = 0.0, []
    for rate in (rate for rate in RATES if rate <= highest):
        found = load(lab, program, rate, seconds, proxy)
        bad = found["failed"] + (found["private"] if repaired else 0)
        tried.append(f"{rate}: {found['rate']:.0f}/s, {bad:.0f} bad, {found['again']:.0f} again")
        print("  " + tried[-1], file=sys.stderr, flush=True)
        if bad or found["rate"] < 0.9 * rate:
            break
        best = rate
    return best, tried


def rtp(lab: Lab, program: Path, seconds: float) -> tuple[float, float]:
    """Packets a second that a flood gets through: of a plain socket, and of one with a pinhole, in turns."""
    rates: dict[str, list[float]] = {"plain": [], "pinhole": []}
    for _ in range(ROUNDS):
        for name, port in (("plain", 7000), ("pinhole", 4000)):
            log = lab.tmp / f"count-{name}.txt"
            log.unlink(missing_ok=True)
            counter = lab.popen("outside", [program, "count", SERVER4, "9100", str(seconds * 0.8)], log=log)
            lab.run("inside", [program, "flood", CLIENT4, str(port), SERVER4, "9100", str(seconds)])
            counter.wait(5)
            lab.stop(counter)
            rates[name].append(figures(log.read_text())["rate"])
    return max(rates["plain"]), max(rates["pinhole"])


def cpu_of(running: object) -> Figures:
    """Seconds of CPU that the processes have used which a call needs; none of a way that has no processes."""
    if isinstance(running, Gateway):
        rows = running.admin("status")
        return {row["process"]: cpu_seconds(row["pid"]) for row in rows if row["process"] in ("packets", "broker")}
    used: Figures = {}
    if isinstance(running, OutboundProxy):
        for pid in router_pids(running.lab):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            used[name] = used.get(name, 0.0) + cpu_seconds(pid)
    return used


def through_a_call(lab: Lab, program: Path, seconds: float) -> tuple[float, float]:
    """`rtp`, while a call holds a pinhole for port 4000."""
    with gateway(lab):
        server = Server(lab)
        phone = Phone(lab, "inside", CLIENT4, server)
        try:
            phone.media.close()
            phone.ask("INVITE", 1, body=sdp(CLIENT4, 4000))
            phone.ask("ACK", 1, ";tag=far")
            found = rtp(lab, program, seconds)
            phone.ask("BYE", 2, ";tag=far")
            return found
        finally:
            phone.end.close()
            server.end.close()


def unlost(lab: Lab, program: Path, host: str, ports: list[int]) -> float:
    """Packets a second, in turns to these ports: the highest rate at which the server misses less than a thousandth."""
    best = 0.0
    for rate in range(10_000, 200_000, 10_000):
        log = lab.tmp / "count-streams.txt"
        log.unlink(missing_ok=True)
        counter = lab.popen("outside", [program, "count", SERVER4, "9100", "60"], log=log)
        argv = [program, "stream", CLIENT4, 4000, host, 2, rate, *ports]
        sent = figures(lab.run("inside", [str(word) for word in argv]).stdout)["sent"]
        lab.stop(counter)
        got = figures(log.read_text())["packets"]
        print(f"  {rate}: {sent:.0f} sent, {sent - got:.0f} lost", file=sys.stderr, flush=True)
        if sent < 1.9 * rate or got < 0.999 * sent:
            break
        best = rate
    return best


def through_calls(lab: Lab, program: Path, name: str) -> tuple[float, float]:
    """`unlost`, while as many calls as there are ports go that way, and rtpengine's CPU time a packet in seconds.

    No flood of one call: rtpengine does not read a socket any more when it has found more than 50 packets there for the
    fifth time.
    """
    lab.run("router", ["conntrack", "-F"])
    with WAYS[name](lab) as running:
        host = running.address if isinstance(running, OutboundProxy) else SERVER4
        server, phone = Server(lab), Media(lab, "inside", CLIENT4, 5060)
        try:
            ports = [_called(host, server, phone, 4000 + 2 * number) for number in range(MEDIA_CALLS)]
            used = cpu_of(running).get("rtpengine", 0)
            lab.run("inside", [str(word) for word in (program, "stream", CLIENT4, 4000, host, 2, 10_000, *ports)])
            cost = (cpu_of(running).get("rtpengine", 0) - used) / 20_000
            return unlost(lab, program, host, ports), cost
        finally:
            phone.close()
            server.end.close()


def _called(host: str, server: Server, phone: Media, port: int) -> int:
    """Make a call with media at `port`, by way of `host`: the port there that they go to."""
    lines = [f"From: <sip:ann@example.test>;tag={port}", "To: <sip:bob@example.test>", f"Call-ID: media-{port}"]
    lines += ["CSeq: 1 INVITE", f"Via: SIP/2.0/UDP {CLIENT4};branch=z9hG4bK{port}", f"Contact: <sip:ann@{CLIENT4}>"]
    lines += ["Max-Forwards: 70"] + ([f"Route: <sip:{host};lr>"] if host != SERVER4 else [])
    phone.send((host, 5060), message(f"INVITE sip:bob@{SERVER4} SIP/2.0", lines, sdp(CLIENT4, port)))
    server.answer()
    while (heard := phone.hears(5)) is not None:
        answered = re.search(r"^SIP/2.0 200 (?s:.*)^m=audio ([0-9]+) ", heard.decode(), re.M)
        if answered:
            return int(answered[1])
    raise AssertionError("no answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--most", type=float, default=3000)
    parser.add_argument("--only", choices=WAYS)
    options = parser.parse_args()
    costs: Figures = {}
    print(
        f"| | calls/s without one failed | a message's way at {QUIET} calls/s, p50 | p99 "
        f"| at {BUSY} calls/s, p50 | p99 | INVITE to 180 at {QUIET} calls/s, p50 | p99 |"
    )
    print("| --- " * 8 + "|")
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        Path(directory).chmod(0o755)
        program = Path(directory, "sip_load")
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "sip_load.c"], check=True)
        for number in range(FIRST, FIRST + CLIENTS):
            lab.run("inside", ["ip", "address", "add", f"192.168.56.{number}/24", "dev", "eth0"])
        for name, prepare in WAYS.items():
            if options.only not in (None, name):
                continue
            print(name, file=sys.stderr)
            lab.run("router", ["conntrack", "-F"])  # a connection keeps the way that it began with
            with prepare(lab) as running:
                proxy = running.address if isinstance(running, OutboundProxy) else ""
                load(lab, program, CLIENTS, 1.0, proxy)  # everybody's first call
                before = cpu_of(running)
                quiet = load(lab, program, QUIET, QUIET_SECONDS, proxy)
                costs |= {who: (used - before[who]) / quiet["done"] for who, used in cpu_of(running).items()}
                busy = load(lab, program, BUSY, BUSY_SECONDS, proxy)
                best, _ = most(lab, program, options.seconds, options.most, name != "plain NAT", proxy)
            found = [quiet["way_p50"], quiet["way_p99"], busy["way_p50"], busy["way_p99"]]
            found += [quiet["setup_p50"], quiet["setup_p99"]]
            times = " | ".join(f"{microseconds / 1000:.2f} ms" for microseconds in found)
            print(f"| {name} | {best:,.0f} | {times} |", flush=True)
        if costs:
            print()
            print("CPU time a call: " + ", ".join(f"{who} {1000 * used:.2f} ms" for who, used in costs.items()))
        if options.only in (None, "algate"):
            flood, pinhole = through_a_call(lab, program, 2.0)
            print()
            print(
                f"RTP of 172 bytes through a call's pinhole: {pinhole:,.0f} packets/s, "
                f"{pinhole / flood:.2f} of plain NAT ({flood:,.0f})"
            )
        print(f"\nRTP of 172 bytes of {MEDIA_CALLS} calls, with less than a thousandth lost:")
        for name in WAYS:
            if options.only in (None, name) and name != "nf_nat_sip":
                packets, cost = through_calls(lab, program, name)
                more = f", {1e6 * cost:.1f} us of rtpengine's CPU time each" if cost else ""
                print(f"\n- {name}: {packets:,.0f} packets/s{more}", flush=True)


if __name__ == "__main__":
    main()

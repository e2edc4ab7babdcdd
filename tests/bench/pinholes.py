"""How many kernel pinholes a broker opens and closes in a second: `sudo .venv/bin/python -m tests.bench.pinholes`.

A broker in a namespace of its own, asked by one worker (this process, gevent) with many requests in flight, as in
front of a server farm of FTP clients. `--kind`: other kinds than `once`; conversations (`--udp` is the same) are pairs
for RTP and RTCP, opened for nobody, changed to a peer, closed. `--mappings N`: how long N mappings take to be installed
and to be read back after the broker's death, and what an opening of `once` costs beside them. `--per-second N`: not as
many as possible but N a second, in the default range of ports, and how many were refused. Prints lines of Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.socket

from alg.address import Endpoint
from gateway.model.errors import PinholeRefused
from gateway.model.requests import PinholeRequest, PinholeUpdate
from gateway.pinhole.client import BrokerClient
from tests.net.broker_rig import SERVER, Rig, inbound

RATES_OF_KINDS = ("anybody", "mapping", "gre")  # of which a client may open a few in a second


def media(number: int) -> PinholeRequest:
    """A pair of ports for the media of a call, of one of 100 telephones."""
    client = f"192.168.56.{10 + number % 100}"
    target = Endpoint(client, 4000 + 2 * (number // 100))
    changes = {"transport": "udp", "kind": "conversation", "peer": None, "client": client, "target": target}
    return inbound(flow=f"w0-{number}", reason="sip.rtp", second=target.port + 1, **changes)


def request_of(kind: str, number: int) -> PinholeRequest:
    """A good request of a kind."""
    client = f"192.168.56.{10 + number % 200}"
    target = Endpoint(client, 10000 + number // 200)
    changes: dict[str, Any] = {"flow": f"w0-{number}", "client": client, "target": target}
    match kind:
        case "conversation":
            return media(number)
        case "mapping":  # as a client has 32 at most, of as many clients as needed
            client = f"10.64.{number // 25 // 250}.{1 + number // 25 % 250}"
            changes |= {"client": client, "target": Endpoint(client, 10000 + number % 25)}
            changes |= {"kind": kind, "transport": "tcp+udp", "peer": None, "peers": None, "ttl": 7200.0}
        case "gre":  # 8
            client = f"10.64.{number // 8 // 250}.{1 + number // 8 % 250}"
            changes |= {"client": client, "target": Endpoint(client, number), "kind": kind, "transport": "gre"}
        case "anybody":  # 4
            client = f"10.64.{number // 4 // 250 % 250}.{1 + number // 4 % 250}"
            changes |= {"client": client, "target": Endpoint(client, 10000 + number % 4), "kind": kind, "peer": None}
        case "exchange":
            visitor = f"203.0.113.{10 + number % 200}"
            outer = Endpoint(visitor, 10000 + number // 200)
            changes |= {"kind": kind, "transport": "udp", "peer": None, "visitor": visitor, "outer": outer}
            changes |= {"inner_host": "192.168.56.1"}
    return inbound(**changes)


@contextlib.contextmanager
def asking(rig: Rig, slot: int = 0) -> Iterator[BrokerClient]:
    """The client of a new worker in a slot: what its predecessor had open is closed."""
    with gevent.socket.socket(fileno=os.dup(rig.workers[slot].fileno())) as sock:
        client = BrokerClient(sock, timeout=30.0)
        yield client
        client.stop()


def cpu_of(rig: Rig) -> float:
    """Seconds of processor time that the broker has used, its own and the kernel's for it."""
    assert rig.broker is not None
    user, system = Path(f"/proc/{rig.broker.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """Pinholes opened and closed in a second, the mean time of an opening in milliseconds, and the broker's processor
    time for each in microseconds, which other work on the machine changes less."""

    rate: float
    latency: float
    cpu: float


def measure(rig: Rig, in_flight: int, seconds: float, kind: str = "once") -> Measured:
    """Open and close as many as possible."""
    with asking(rig) as client:
        until = time.monotonic() + seconds
        waited = 0.0
        done = 0

        def work(number: int) -> None:
            nonlocal waited, done
            request = request_of(kind, number)
            while (begun := time.monotonic()) < until:
                if kind in RATES_OF_KINDS:  # each time another client, or its own rate is what is measured
                    number += in_flight
                    request = request_of(kind, number)
                try:
                    lease = client.open(request)
                except PinholeRefused as refused:
                    if refused.rule != "rate":  # these kinds have rates of their own
                        raise
                    gevent.sleep(0.01)
                    continue
                if kind == "conversation":
                    client.update(PinholeUpdate(lease.id, peers=(SERVER,)))
                waited += time.monotonic() - begun
                client.close(lease.id)
                done += 1

        begun, cpu = time.monotonic(), cpu_of(rig)
        gevent.joinall([gevent.spawn(work, number) for number in range(in_flight)], raise_error=True)
        took, cpu = time.monotonic() - begun, cpu_of(rig) - cpu
    return Measured(done / took, 1000 * waited / done, 1e6 * cpu / done)


def many_mappings(rig: Rig, count: int, in_flight: int, seconds: float) -> list[str]:
    """Rows on what it is to have so many mappings."""
    empty = restarted(rig)
    measure(rig, in_flight, seconds)  # once so many ports rest, an opening costs a third more, with mappings or without
    alone = measure(rig, in_flight, seconds)
    with asking(rig, slot=1) as client:
        numbers = iter(range(count))

        def work() -> None:
            for number in numbers:
                while True:
                    try:
                        client.open(request_of("mapping", number))
                        break
                    except PinholeRefused as refused:
                        if refused.rule != "rate":
                            raise
                        gevent.sleep(0.05)

        begun = time.monotonic()
        gevent.joinall([gevent.spawn(work) for _ in range(in_flight)], raise_error=True)
        installed = time.monotonic() - begun
    beside = measure(rig, in_flight, seconds)
    elements = sum(rig.count(name) for name in ("snat4", "map4", "inany4", "outany4", "public4"))
    read = restarted(rig)
    assert len(rig.pinholes()) >= count
    return [
        f"| {count:,} mappings of TCP and UDP installed | {installed:.1f} s |",
        f"| {elements:,} elements read back by a broker that starts, beyond its own start | {read - empty:.2f} s |",
        f"| an opening of `once` beside them, processor time of the broker | {beside.cpu / alone.cpu:.2f} x |",
    ]


def settle(rig: Rig, deadline: float = 30.0) -> None:
    """Wait until the broker has done what follows the openings (its looks at what was opened), for `deadline` seconds
    at most."""
    until = time.monotonic() + deadline
    used = cpu_of(rig)
    while time.monotonic() < until:
        time.sleep(1.0)
        before, used = used, cpu_of(rig)
        if used - before <= 0.03:
            return


def restarted(rig: Rig) -> float:
    """Seconds until a broker that takes the place of one that was killed is ready."""
    rig.kill()
    begun = time.monotonic()
    rig.start()
    return time.monotonic() - begun


def steadily(rig: Rig, per_second: int, seconds: float) -> tuple[int, int]:
    """Open and close so many a second, of 200 clients and one server; how many were opened, and how many refused."""
    done = refused = 0

    def once(number: int) -> None:
        nonlocal done, refused
        try:
            client.close(client.open(request_of("once", number)).id)
            done += 1
        except PinholeRefused:
            refused += 1

    with asking(rig) as client:
        begun = time.monotonic()
        running = set()
        for number in range(round(per_second * seconds)):
            if (wait := begun + number / per_second - time.monotonic()) > 0.001:
                gevent.sleep(wait)
            running.add(greenlet := gevent.spawn(once, number % 20_000))
            greenlet.link(running.discard)
        gevent.joinall(list(running), raise_error=True)
    return done, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--kind", choices=("once", "anybody", "conversation", "mapping", "exchange", "gre"), default="once"
    )
    parser.add_argument("--udp", action="store_const", const="conversation", dest="kind")
    parser.add_argument("--mappings", type=int, default=0)
    parser.add_argument("--per-second", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        ports = "40000-49999" if options.per_second else "20000-65535"
        inside = ("192.168.56.0/24", "10.64.0.0/16")
        with Rig(Path(directory), per_client=10_000, ports=ports, rate=1e6, log=log, inside=inside) as rig:
            if options.per_second:
                done, refused = steadily(rig, options.per_second, options.seconds)
                what = f"{options.per_second:,} pinholes a second for {options.seconds:g} s, each closed at once"
                print(f"| {what} | {done:,} opened, {refused:,} refused |")
                return
            if options.mappings:
                print("\n".join(many_mappings(rig, options.mappings, options.in_flight, options.seconds)))
                return
            rate, latency, cpu = measure(rig, options.in_flight, options.seconds, options.kind)
    pairs = "UDP pairs opened, changed and closed"
    what = pairs if options.kind == "conversation" else f"pinholes ({options.kind}) opened and closed"
    print(
        f"| {what}, {options.in_flight} in flight | {rate:,.0f}/s | {latency:.1f} ms an opening | {cpu:.0f} µs of CPU |"
    )


if __name__ == "__main__":
    main()

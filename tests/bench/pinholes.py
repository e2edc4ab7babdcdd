"""How many kernel pinholes a broker opens and closes in a second: `sudo .venv/bin/python -m tests.bench.pinholes`.

A broker in a namespace of its own, asked by one worker (this process, gevent) with many requests in flight, as in
front of a server farm of FTP clients; with `--udp`, of telephones: pairs for RTP and RTCP, opened for nobody, changed
to a peer, closed. Prints one line of Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import gevent
import gevent.socket

from alg.address import Endpoint
from gateway.model.requests import PinholeRequest, PinholeUpdate
from gateway.pinhole.client import BrokerClient
from tests.net.broker_rig import SERVER, Rig, inbound, wait_for


def media(number: int) -> PinholeRequest:
    """A pair of ports for the media of a call, of one of 100 telephones."""
    client = f"192.168.56.{10 + number % 100}"
    target = Endpoint(client, 4000 + 2 * (number // 100))
    changes = {"transport": "udp", "kind": "conversation", "peer": None, "client": client, "target": target}
    return inbound(flow=f"w0-{number}", reason="sip.rtp", second=target.port + 1, **changes)


def measure(rig: Rig, in_flight: int, seconds: float, udp: bool = False) -> tuple[float, float]:
    """Pinholes opened and closed in a second, and the mean time of an opening in milliseconds."""
    sock = gevent.socket.socket(fileno=os.dup(rig.workers[0].fileno()))
    with sock:
        client = BrokerClient(sock, timeout=10.0)
        until = time.monotonic() + seconds
        waited = 0.0
        done = 0

        def work(number: int) -> None:
            nonlocal waited, done
            request = media(number) if udp else inbound(flow=f"w0-{number}")
            while (begun := time.monotonic()) < until:
                lease = client.open(request)
                if udp:
                    client.update(PinholeUpdate(lease.id, peers=(SERVER,)))
                waited += time.monotonic() - begun
                client.close(lease.id)
                done += 1

        begun = time.monotonic()
        gevent.joinall([gevent.spawn(work, number) for number in range(in_flight)], raise_error=True)
        wait_for(lambda: rig.pinholes() == [], "all closed")
        took = time.monotonic() - begun
        client.stop()
    assert rig.count("once4") == rig.count("dnat4") == rig.count("snat4") == 0
    return done / took, 1000 * waited / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--udp", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with Rig(Path(directory), per_client=10_000, ports="20000-65535", rate=1e6, log=log) as rig:
            rate, latency = measure(rig, options.in_flight, options.seconds, options.udp)
    what = "UDP pairs opened, changed and closed" if options.udp else "pinholes opened and closed"
    print(f"| {what}, {options.in_flight} in flight | {rate:,.0f}/s | {latency:.1f} ms an opening |")


if __name__ == "__main__":
    main()

"""Finds out what the kernel can do by doing it: `python -m gateway.host.features`, in a network namespace of its own.

Reads iptables rules (`{"iptables": ..., "ip6tables": ...}`) from standard input, and writes the result as a JSON
object: the name of each feature, and the reason why it failed, or null. The caller makes and removes the namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

from alg.address import Endpoint
from gateway.broker.conntrack import Conntrack
from gateway.broker.elements import elements_of, leases_of
from gateway.broker.netfilter import Change, Netfilter
from gateway.broker.netlink import NetfilterError
from gateway.broker.nfqueue import open_queue
from gateway.model.requests import Lease

PINHOLES, CONNTRACK, RULES, QUEUE = "kernel pinholes", "connection tracking", "rules", "packets to us (NFQUEUE)"


def main() -> None:
    """Try each feature; the namespace must be a new one."""
    rules: dict[str, str] = json.load(sys.stdin)
    tried: dict[str, str | None] = {}
    attempts = ((PINHOLES, _pinholes), (CONNTRACK, _conntrack), (RULES, lambda: _rules(rules)), (QUEUE, _queue))
    for name, attempt in attempts:
        try:
            attempt()
            tried[name] = None
        except (NetfilterError, OSError, ValueError) as error:
            tried[name] = str(error)
    json.dump(tried, sys.stdout)


def _pinholes() -> None:
    """Add one pinhole of each kind to the table, read them back, and delete them."""
    netfilter = Netfilter("algate-doctor")
    netfilter.load()
    leases = [_lease("203.0.113.1", "192.168.0.10", "203.0.113.5"), _lease("2001:db8::1", "fd00::10", "2001:db8::5")]
    for lease in leases:
        elements = elements_of(lease, 0, 60.0)
        refused = netfilter.apply([Change(add=elements)])
        if refused:
            raise refused[0]
        found = [known.lease.id for known in leases_of(netfilter.elements(), time.time())]
        if lease.id not in found:
            raise ValueError("an element that was added is not there")
        netfilter.apply([Change(delete=elements)])
    netfilter.unload()


def _lease(public: str, client: str, peer: str) -> Lease:
    return Lease(
        id="0123456789abcdef",
        flow="doctor",
        reason="doctor",
        client=client,
        direction="in",
        protocol="udp",
        public=Endpoint(public, 40000),
        target=Endpoint(client, 50000),
        peer=None,
        kind="conversation",
        expires=0.0,
        backend="kernel",
        peers=(peer,),
        second=50001,
    )


def _conntrack() -> None:
    Conntrack().find([Endpoint("192.0.2.1", 40000)])


def _queue() -> None:
    """Bind a queue, as the packets process does."""
    open_queue(1, 16, 4096, 65536).close()


def _rules(rules: dict[str, str]) -> None:
    """Load this configuration's own rules."""
    for program, text in rules.items():
        path = shutil.which(f"{program}-restore", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            raise ValueError(f"{program}-restore is not installed")
        done = subprocess.run([path], input=text, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode:
            raise ValueError(f"{program}: {' '.join(done.stderr.split())[:300]}")


if __name__ == "__main__":
    main()

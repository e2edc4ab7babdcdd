"""A torrent client that asks for its port itself: the module for announces changes nothing, and opens nothing more."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import bittorrent
from tests.lab.bittorrent import TRACKER
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.peers import unpacked
from tests.lab.tap import Tap
from tests.net.pcp_client import TCP, UDP, PcpClient

PORT = 51413


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(
        lab.write_config(
            network={"outside": ROUTER_OUT4},
            portmap={"protocols": ["natpmp", "pcp"]},
            alg={"bittorrent": {"mode": "rewrite"}},
            process={"workers": 1},
        )
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


def holes(gateway: Gateway) -> set[tuple[str, str, str]]:
    """What the client has: why, by which transport, and its public endpoint."""
    found = [hole for hole in gateway.admin("pinholes") if hole["client"] == CLIENT4]
    return {(hole["reason"], hole["protocol"], hole["public"]) for hole in found}


@pytest.mark.timeout(180)
def test_transmission_announces_the_port_that_natpmp_gave(lab: Lab, gateway: Gateway) -> None:
    """Its own number is another client's, so that the public one differs; a leecher with nothing but the tracker's list
    gets the whole file."""
    seeds, leeches, watched, folder = (lab.tmp / name for name in ("seeds", "leeches", "watched", "transmission"))
    for each in (seeds, leeches, watched, folder):
        each.mkdir()
    file = seeds / "file.bin"
    file.write_bytes(os.urandom(2_000_000))
    made, info_hash = bittorrent.torrent(file, f"http://{SERVER4}:{TRACKER}/announce")
    tracker = bittorrent.opentracker(lab, SERVER4, info_hash)
    settings: dict[str, Any] = {"port-forwarding-enabled": True, "peer-port": PORT, "bind-address-ipv4": CLIENT4}
    settings |= {"dht-enabled": False, "lpd-enabled": False, "pex-enabled": False, "utp-enabled": False}
    settings |= {"rpc-enabled": False, "download-dir": str(seeds), "watch-dir": str(watched), "watch-dir-enabled": True}
    (folder / "settings.json").write_text(json.dumps(settings))
    with PcpClient(lab, "client2", CLIENT2_4, ROUTER_IN4) as other:
        for protocol in (TCP, UDP):
            assert other.map(PORT, protocol=protocol, suggested=PORT).port == PORT
        program = unpacked("transmission-daemon", "usr/bin/transmission-daemon")
        transmission = lab.popen("inside", [program, "-f", "-g", folder], log=lab.logs / "transmission.log")
        programs = [tracker, transmission]
        try:
            mapped = lab.wait_for(lambda: holes(gateway), 30, "transmission to have its port")
            [public] = {int(hole[2].rpartition(":")[2]) for hole in mapped}
            assert public != PORT
            assert mapped == {("map.natpmp", "tcp", f"{ROUTER_OUT4}:{public}")}  # it asks for TCP only
            with Tap(lab, "inside", TRACKER) as within, Tap(lab, "outside", TRACKER) as beyond:
                known = lab.tmp / "file.torrent"
                known.write_bytes(made)
                (lab.tmp / "moved.torrent").write_bytes(made)
                (lab.tmp / "moved.torrent").rename(watched / "file.torrent")
                lab.wait_for(
                    lambda: (ROUTER_OUT4, public) in list(bittorrent.peers_of(lab, SERVER4, info_hash)),
                    40,
                    "the tracker to know" + lab.tail_of_logs(),
                )
            came = sorted(one for one in beyond.streams() if one.source == ROUTER_OUT4)
            assert came == sorted(one._replace(source=ROUTER_OUT4) for one in within.streams())
            assert any(f"port={public}".encode() in one.client for one in came)
            assert holes(gateway) == mapped  # no second one
            leecher = bittorrent.aria2(lab, "stranger", leeches, known, 6991, "--seed-time=0")
            programs.append(leecher)
            lab.wait_for(lambda: leecher.poll() is not None, 60, "the file to arrive")
            arrived = hashlib.sha256((leeches / "file.bin").read_bytes()).digest()
            assert arrived == hashlib.sha256(file.read_bytes()).digest()
            assert holes(gateway) == mapped
        finally:
            for one in reversed(programs):
                lab.stop(one, 20)
        lab.wait_for(lambda: holes(gateway) == set(), 10, "transmission to end what it has")

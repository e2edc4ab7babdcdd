"""The portmap process: gevent, no privilege at all. Entry: `python -m gateway.process.portmap BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys

if __name__ == "__main__":  # structlog loads rich where it is there: four megabytes that this process does not need
    sys.modules["rich"] = None  # type: ignore[assignment]

import _socket
import ipaddress
import os
import signal
import socket
import time
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import gevent
import gevent.socket as gsocket
from gevent.event import Event

from alg.pcp import pcp
from gateway import __version__
from gateway.config.rules import policy_of
from gateway.config.schema import Config, lifetime_range, port_range
from gateway.front.packets.journal import Journal
from gateway.front.portmap.announcer import Announcer
from gateway.front.portmap.datagrams import DatagramSocket, MappingDatagram
from gateway.front.portmap.leases import Leases
from gateway.front.portmap.machine import secret
from gateway.front.portmap.mapper import MapperSetting, PortMapper
from gateway.front.portmap.memory import Memory
from gateway.front.portmap.pcp import PcpFront, Speaks
from gateway.front.portmap.permits import Permits
from gateway.front.portmap.public import PublicAddresses
from gateway.front.portmap.ssdp import Corner
from gateway.front.portmap.table import MappingLimits, MappingTable
from gateway.front.portmap.uplink import Uplink
from gateway.front.portmap.upnp import Identify, UpnpFront, UpnpSetting
from gateway.front.portmap.upstream import RouterAbove
from gateway.net.above import Above, find
from gateway.net.addresses import OwnAddresses, router_above
from gateway.net.neighbours import Kernel, Neighbours
from gateway.observe.admin import Rows
from gateway.observe.counters import recent_rows
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import Sample, metrics_row
from gateway.pinhole.client import BrokerClient
from gateway.process.attendant import Attendant
from gateway.process.boot import Boot
from gateway.process.collector import collect_rarely
from gateway.process.confine import hide, restrict_calls

LINK = ipaddress.IPv6Network("fe80::/10")
"""Addresses of the link, from which clients may use UPnP; they are inside wherever they come by."""

FIND = 8.0
"""Seconds that clients wait after the start for the router above to be found. After that they are served without it,
and notified if it is found later."""

log = get_logger()


class Portmap:
    """All parts of the process, built from its boot document."""

    def __init__(self, boot: Boot) -> None:
        config = boot.config
        assert boot.broker is not None
        self._attendant = Attendant(
            boot,
            {"status": self._status, "metrics": self._metrics, "events": recent_rows, "mappings": self._mappings},
        )
        self._stop = Event()
        self._lag = LagMeter()
        self._instance = config.process.run_dir
        own = OwnAddresses()
        journal = Journal(boot.journal)
        memory = Memory(journal, boot_id())
        self._neighbours = Neighbours([*config.inside_networks, LINK], Kernel())
        self._table = MappingTable(limits_of(config), self._identify)
        self._mapper = PortMapper(
            self._table,
            Leases(BrokerClient(socket.socket(fileno=boot.broker), keep=bool(journal.found))),
            PublicAddresses(config.network.outside, config.inside_networks),
            Permits(policy_of(config, datetime.now, own.has).decide_mapping, self._neighbours.single),
            MapperSetting(config.inside_networks, frozenset(config.network.masquerade), config.rules.restore),
            memory,
            self._payer,
        )
        speaks: frozenset[Speaks] = frozenset(name for name in ("pcp", "natpmp") if name in config.portmap.protocols)
        self._front = PcpFront(self._mapper, speaks)
        sockets = {name: _socket.socket(fileno=fd) for name, fd in boot.asking.items()}
        self._sockets = [
            DatagramSocket(sock, pcp.LONGEST, self._mapper.may_ask, self._answer, self._mapper.is_inside)
            for name, sock in sockets.items()
            if name.startswith("pcp ")
        ]
        self._upnp = self._make_upnp(config, sockets) if "upnp" in config.portmap.protocols else None
        self._announcer = Announcer(self._sockets, self._front.announcements)
        memory.restarted.append(self._announcer.begin)
        if config.portmap.upstream:
            self._mapper.upstream = RouterAbove(self._mapper.behind, self._find_above, self._table, self._mapper)

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        gevent.signal_handler(signal.SIGTERM, self._stop.set)
        self._attendant.start()
        self._mapper.recover()
        upstream = self._mapper.upstream
        if upstream is not None:
            gevent.spawn(upstream.run)
            upstream.wait(FIND)
        for sock in self._sockets:
            sock.start()
        gevent.spawn(self._mapper.run)
        if self._upnp is not None:
            self._upnp.run()
        self._attendant.ready()
        self._stop.wait()
        if self._upnp is not None:
            self._upnp.stop()
        for sock in self._sockets:
            sock.stop()

    def _make_upnp(self, config: Config, sockets: dict[str, _socket.socket]) -> UpnpFront:
        """Put UPnP together from the sockets whose places are named "ssdp INTERFACE FAMILY" and "http ..."."""
        setting = UpnpSetting(
            announced=config.portmap.igd,
            port=config.portmap.http_port,
            inside=config.inside_networks,
            instance=config.process.run_dir,
            version=__version__,
        )
        uplink = Uplink(lambda: self._mapper.external(4), self._mapper.packets)
        asked: dict[str, list[tuple[str, gsocket.socket]]] = {"ssdp": [], "http": []}
        for name, sock in sockets.items():
            what, interface, _ = name.split(" ")
            if what in asked:
                asked[what].append((interface, gsocket.socket(fileno=sock.detach())))
        corners = []
        for interface, sock in asked["ssdp"]:
            try:
                corners.append(Corner(sock, interface, config.inside_networks))
            except OSError as error:  # the interface has gone; the supervisor will start another process without it
                log.warning("portmap.socket_failed", interface=interface, error=error.strerror)
        listeners = [sock for _, sock in asked["http"]]
        return UpnpFront(setting, self._mapper, uplink, corners, listeners, Identify(self._identify, self._payer))

    def _find_above(self, own: str) -> Above | None:
        """Return the ways to ask a router above an address of this router."""
        try:
            router = router_above(4)
        except OSError:
            router = None
        return find(own, router, secret(f"upstream {self._instance}")) if router is not None else None

    def _identify(self, address: str) -> str:
        """Return which host an address is of."""
        return self._neighbours.identify(address).host

    def _payer(self, address: str) -> str:
        """Return whose rate a datagram of an address counts for: its host's. Where that is not known, as the kernel
        learns it only from what the host asks it or is answered, all such addresses of a /64 or /24 count together: a
        host may have many, and pretend to more."""
        host = self._neighbours.identify(address).host
        return host if host.startswith("link ") else _surroundings(address)

    def _answer(self, asked: MappingDatagram) -> bytes | None:
        return self._front.answer(asked.data, asked.source)

    def _status(self) -> Rows:
        return [
            {
                "process": "portmap",
                "pid": os.getpid(),
                "mappings": len(self._table),
                "epoch": self._mapper.epoch,
                "external": [self._mapper.external(version) for version in (4, 6)],
                "refused": dict(self._mapper.refused),
                **({"upstream": upstream.status()} if (upstream := self._mapper.upstream) is not None else {}),
                **(self._upnp.status() if self._upnp is not None else {}),
            }
        ]

    def _metrics(self) -> Rows:
        samples: list[Sample] = [(("algate_portmap_mappings",), len(self._table))]
        return [metrics_row("portmap", samples)]

    def _mappings(self) -> Rows:
        """Return each hold of each mapping, with what only this process knows of it."""
        now = time.monotonic()
        return [
            {
                "client": mapping.client,
                "protocol": mapping.transport,
                "port": mapping.port,
                "public": str(mapping.public),
                "above": str(mapping.above) if mapping.above is not None else "",
                "holder": hold.holder,
                "lease": hold.lease,
                "left": mapping.left(hold.name, now),
                "filters": list(hold.filters),
                "description": hold.description,
            }
            for mapping in self._table
            for hold in mapping.holds.values()
        ]


@lru_cache(maxsize=4096)
def _surroundings(address: str) -> str:
    return str(ipaddress.ip_network((address.partition("%")[0], 64 if ":" in address else 24), strict=False))


def limits_of(config: Config) -> MappingLimits:
    """Return what clients may ask for."""
    portmap = config.portmap
    return MappingLimits(
        per_client=portmap.per_client,
        inside_ports=port_range(portmap.inside_ports),
        lifetime=lifetime_range(portmap.lifetime),
        permanent=portmap.permanent,
    )


def boot_id() -> str:
    """Return the id of this boot of the host; "" if the kernel gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def main() -> None:
    """Entry: the boot document's descriptor is the only argument."""
    hide()
    boot = Boot.from_memfd(int(sys.argv[1]))
    setup_logging("portmap", boot.config.log.settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    portmap = Portmap(boot)
    collect_rarely()
    if reason := restrict_calls():
        log.warning("confine.unfiltered", reason=reason)
    portmap.run()


if __name__ == "__main__":
    main()

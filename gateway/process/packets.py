"""The packets process: gevent and NFQUEUE, CAP_NET_ADMIN only. Entry: `python -m gateway.process.packets BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys

if __name__ == "__main__":  # structlog loads rich where it is there: four megabytes that this process does not need
    sys.modules["rich"] = None  # type: ignore[assignment]

import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any, cast

import gevent
import msgspec

from alg.api import Mode
from alg.datagrams import DatagramContext, Shown, ShownModule
from alg.registry import DatagramKind
from gateway.broker.nfqueue import QueuedPacket, open_queue
from gateway.config.rules import policy_of
from gateway.config.schema import AlgSection, Config
from gateway.driver.datagrams import DatagramDriver, Setting
from gateway.driver.guard import ModuleGuard
from gateway.driver.module_calls import attempt, counts_of, kicked_by, rows_of, samples_of
from gateway.front.packets.early import EarlyMedia
from gateway.front.packets.handshakes import Handshakes
from gateway.front.packets.journal import Journal
from gateway.front.packets.packet import LONGEST_WHOLE, is_tcp
from gateway.front.packets.queue import MOST_HELD, PacketFront, QueueModule
from gateway.model.requests import Along
from gateway.net.addresses import PublicAddress, public_address, source_towards
from gateway.net.libev import EV_READ
from gateway.net.neighbours import Kernel, Neighbours
from gateway.observe.admin import Rows
from gateway.observe.counters import recent_rows
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import Sample, metrics_row
from gateway.observe.trace import Trace
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.kernel import KernelPinholes
from gateway.process.attendant import Attendant
from gateway.process.boot import Boot
from gateway.process.collector import collect_rarely
from gateway.process.confine import hide, restrict_calls
from gateway.process.installed import installed

log = get_logger()

# Packets that wait in the kernel: a quarter of a second. Further ones are dropped, and SIP sends them again after half.
LONGEST_QUEUE = 2048
LONGEST_EARLY = 512  # the same of media that come before their sender is let in, and of SYNs; further ones pass
HEADERS = 128  # bytes of those that are looked at
RECEIVE_BUFFER = 4 * 1024 * 1024
ROUND = 16  # packets in a row: then timers and the broker's answers get their turn
ROUTE_AGE = 0.1  # seconds that an answer of the routing table is believed


class Packets:
    """All parts of the process, built from its boot document."""

    def __init__(self, boot: Boot) -> None:
        config = boot.config
        assert boot.broker is not None
        self._outside = config.network.outside
        self._routes: dict[tuple[str, int], tuple[float, str | None]] = {}
        journal = Journal(boot.journal) if boot.journal else None
        keep = journal is not None and bool(journal.found)
        _, self._kinds = installed(config)
        self._trace = Trace()
        self._early = EarlyMedia()
        self._handshakes = Handshakes(
            config.inside_networks, identify=Neighbours(config.inside_networks, Kernel()).single
        )
        guard = ModuleGuard()
        policy = policy_of(config, datetime.now, lambda address: False)  # a mapping has no server whose address counts
        self._front = PacketFront(
            [
                module
                for name, section in config.datagram_sections().items()
                if name in self._kinds
                and (module := _queue_module(config, self._kinds[name], section, journal is not None, guard))
            ],
            KernelPinholes(BrokerClient(socket.socket(fileno=boot.broker), keep=keep)),
            config.inside_networks,
            self._public_along,
            self._trace,
            journal=journal,
            admitted=self._early.admitted,
            may_map=lambda target: policy.permits_mapping(target, None),
        )
        self._lag = LagMeter()
        tables = {name for kind in self._kinds.values() for name in kind.tables}
        self._attendant = Attendant(
            boot,
            {
                "status": self._status,
                "trace": self._trace_rows,
                "metrics": self._metrics,
                "events": recent_rows,
                **{name: partial(self._table, name) for name in tables},
            },
            {"ladder": self._trace.ladders.rows, "kick": self._kick},
        )
        self._stop = gevent.event.Event()
        self._queue = open_queue(config.queue, LONGEST_QUEUE, LONGEST_WHOLE, RECEIVE_BUFFER)
        self._early_queue = open_queue(config.early_queue, LONGEST_EARLY, HEADERS, RECEIVE_BUFFER, opens=True)

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        gevent.signal_handler(signal.SIGTERM, self._stop.set)
        reading = gevent.get_hub().loop.io(self._queue.fileno(), EV_READ)
        reading.start(self._read)
        early = gevent.get_hub().loop.io(self._early_queue.fileno(), EV_READ)
        early.start(self._read_early)
        gevent.spawn(self._front.run)
        self._attendant.start()
        self._attendant.ready()
        self._stop.wait()
        reading.close()
        early.close()
        self._front.stop()
        self._queue.close()
        self._early_queue.close()

    def _read(self) -> None:
        """Pass packets to the front, a few at a time. Runs in the event loop itself, because nothing there waits."""
        try:
            self._queue.read(ROUND, self._front.take)
        except BaseException:
            self._stop.set()  # the successor begins where this one ends
            raise

    def _read_early(self) -> None:
        try:
            self._early_queue.read(ROUND, self._take_early)
        except BaseException:
            self._stop.set()
            raise

    def _take_early(self, packet: QueuedPacket) -> None:
        (self._handshakes if is_tcp(packet.get_payload()) else self._early).take(packet)

    def _public_along(self, along: Along) -> PublicAddress | None:
        """Return where pinholes of a flow listen, if the configuration says so; otherwise what is expected of the NAT,
        and the broker finds out."""
        now = time.monotonic()
        way = along.destination.host, along.device
        known = self._routes.get(way)
        if known is None or known[0] < now:
            if len(self._routes) > 4096:
                self._routes.clear()
            try:
                known = self._routes[way] = now + ROUTE_AGE, source_towards(*way)
            except OSError:  # no descriptor is left to ask with: what was found before is still the best answer
                known = known if known is not None else (now, None)
        facing = known[1]
        if facing is None:
            return None
        public = public_address(self._outside, facing)
        named = self._outside == public.advertised
        return public if named else PublicAddress(facing, facing, along)

    def _shown(self) -> Iterator[tuple[DatagramKind, DatagramDriver, ShownModule]]:
        """Return the modules that have something to show."""
        for name, driver in self._front.drivers().items():
            if self._kinds[name].tables:
                yield self._kinds[name], driver, cast(ShownModule, driver.module)

    def _status(self) -> Rows:
        row: dict[str, Any] = {"process": "packets", "pid": os.getpid()}
        for name, driver in self._front.drivers().items():
            row[f"mode_{name}"] = driver.setting.mode.value
        row |= self._front.status()
        row["handshakes_refused"] = self._handshakes.refused
        for kind, _, module in self._shown():
            row = {**counts_of(kind.name, module), **row}
        return [row]

    def _metrics(self) -> Rows:
        samples: list[Sample] = self._front.samples()
        for kind, _, module in self._shown():
            samples += samples_of(kind.name, module)
        return [metrics_row("packets", samples)]

    def _trace_rows(self) -> Rows:
        return [{**row, "process": "packets"} for row in self._trace.rows()]

    def _table(self, name: str) -> Rows:
        """Return the rows of the table `name`, of all modules that have it."""
        rows: Rows = []
        for kind, driver, module in self._shown():
            if name in kind.tables:
                driver.look_at_traffic()
                shown = Shown(driver.conversations.lease_ids(), {}, time.monotonic())
                rows += ({**row, "transport": "udp"} for row in rows_of(kind.name, module, name, shown))
        return rows

    def _kick(self, name: str) -> Rows:
        """End what has this id in a module, such as a call by its Call-ID."""
        rows: Rows = []
        for kind, driver, module in self._shown():
            for kicked in kicked_by(kind.name, module, name):
                log.warning("call.kick", call=name, client=kicked.row["client"], server=kicked.row["server"])
                for ref in kicked.refs:
                    driver.conversations.close(ref)
                rows.append(kicked.row)
        return rows


def _queue_module(
    config: Config, kind: DatagramKind, section: AlgSection, recorded: bool, guard: ModuleGuard
) -> QueueModule | None:
    """Return a module as the queue drives it; None if it cannot be made, and then its datagrams pass unread. In a mode
    other than "rewrite" nothing is open, so there is nothing with which a successor could go on."""
    options = msgspec.convert(section.options, kind.options) if kind.options is not None else None
    recorded = recorded and kind.recorded and section.mode is Mode.REWRITE
    context = DatagramContext(options, recorded, None, config.published_datagrams)
    made = attempt(kind.name, kind.make, context, otherwise=None)
    if made is None:
        return None
    module, look_every = made
    flow = f"p-{int(time.time() * 1000) & 0xFFFFFFFF:x}"
    setting = Setting(kind.name, section.mode, flow, MOST_HELD, {}, look_every, kind.shown, guard, kind.kinds)
    return QueueModule(module, setting, frozenset(section.ports), recorded, kind.read_inbound)


def main() -> None:
    """Entry: the boot document's descriptor is the only argument."""
    hide()
    boot = Boot.from_memfd(int(sys.argv[1]))
    setup_logging("packets", boot.config.log.settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        packets = Packets(boot)
    except OSError as error:
        log.error("queue.failed", queue=boot.config.queue, reason=str(error))
        sys.exit(1)
    collect_rarely()
    if reason := restrict_calls():
        log.warning("confine.unfiltered", reason=reason)
    packets.run()


if __name__ == "__main__":
    main()

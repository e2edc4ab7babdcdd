"""The packets process: gevent and NFQUEUE, CAP_NET_ADMIN only. Entry: `python -m gateway.process.packets BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import errno
import os
import signal
import socket
import sys
import time
from collections import Counter
from typing import cast

import gevent
import gevent.socket as gsocket
import msgspec
from netfilterqueue import COPY_PACKET, NetfilterQueue

from alg.api import Mode
from alg.sip.options import SipOptions
from alg.sip.rows import call_rows
from alg.sip.session import SipEngine
from gateway.front.packets.journal import Journal
from gateway.front.packets.packet import LONGEST_WHOLE
from gateway.front.packets.queue import PacketFront
from gateway.net.addresses import PublicAddress, public_address, source_towards
from gateway.observe.admin import Rows, answer
from gateway.observe.counters import recent_rows
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import Sample, metrics_row
from gateway.observe.trace import Trace
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.kernel import KernelPinholes
from gateway.process.boot import Boot
from gateway.process.collector import collect_rarely
from gateway.process.confine import hide
from gateway.process.lifeline import Ping, Pong, Ready, Report, hear_supervisor, send

log = get_logger()

# Packets that wait in the kernel: a quarter of a second. Further ones are dropped, and SIP sends them again after half.
LONGEST_QUEUE = 2048
RECEIVE_BUFFER = 4 * 1024 * 1024
READ = 1  # libev's EV_READ
ROUND = 16  # packets in a row: then timers and the broker's answers get their turn
ROUTE_AGE = 0.1  # seconds that an answer of the routing table is believed


class _Turn:
    """The queue's socket as the binding wants to see it: empty after some packets, so that nobody waits for long."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.left = 0

    def recv(self, size: int) -> bytes:
        if self.left <= 0:
            raise BlockingIOError(errno.EAGAIN, "others are waiting")
        self.left -= 1
        return os.read(self._fd, size)


class Packets:
    """Everything that the process consists of, put together from its boot document."""

    def __init__(self, boot: Boot) -> None:
        config = boot.config
        assert boot.broker is not None
        section = config.alg["sip"]
        self._outside = config.network.outside
        self._routes: dict[str, tuple[float, PublicAddress | None]] = {}
        # Nothing is open in any other mode, so there is nothing to go on with.
        journal = Journal(boot.journal) if boot.journal and section.mode is Mode.REWRITE else None
        keep = journal is not None and bool(journal.found)
        options = msgspec.convert(section.options, SipOptions)
        self._engine = SipEngine(options, recorded=journal is not None)
        self._trace = Trace()
        self._front = PacketFront(
            self._engine,
            KernelPinholes(BrokerClient(socket.socket(fileno=boot.broker), keep=keep)),
            section.mode,
            config.inside_networks,
            self._public_towards,
            self._trace,
            journal=journal,
            look_every=options.look_every,
        )
        self._mode: Mode = section.mode
        self._lag = LagMeter()
        self._admin = gsocket.socket(fileno=boot.admin)
        self._lifeline = gsocket.socket(fileno=boot.lifeline)
        self._stop = gevent.event.Event()
        self._queue = NetfilterQueue()
        self._queue.bind(
            config.queue,
            self._front.take,
            max_len=LONGEST_QUEUE,
            mode=COPY_PACKET,
            range=LONGEST_WHOLE,
            sock_len=RECEIVE_BUFFER,
        )

    def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        gevent.signal_handler(signal.SIGTERM, self._stop.set)
        fd = self._queue.get_fd()
        os.set_blocking(fd, False)
        reading = gevent.get_hub().loop.io(fd, READ)
        reading.start(self._read, _Turn(fd))
        gevent.spawn(self._front.run)
        gevent.spawn(self._serve_admin)
        gevent.spawn(self._watch_supervisor)
        send(self._lifeline, Ready())
        self._stop.wait()
        reading.close()
        self._front.stop()
        self._queue.unbind()

    def _read(self, turn: _Turn) -> None:
        """Hand packets to the front, a few at a time. In the event loop itself: nothing there waits."""
        turn.left = ROUND
        try:
            self._queue.run_socket(cast(socket.socket, turn))
        except BaseException:
            self._stop.set()  # the successor begins where this one ends
            raise

    def _public_towards(self, server: str) -> PublicAddress | None:
        """The address of this host that `server` sees."""
        now = time.monotonic()
        known = self._routes.get(server)
        if known is None or known[0] < now:
            facing = source_towards(server)
            if len(self._routes) > 4096:
                self._routes.clear()
            known = (now + ROUTE_AGE, public_address(self._outside, facing) if facing else None)
            self._routes[server] = known
        return known[1]

    def _serve_admin(self) -> None:
        verbs = {"status": self._status, "calls": self._calls, "trace": self._trace_rows}
        verbs |= {"metrics": self._metrics, "events": recent_rows}
        while True:
            try:
                connection, _ = self._admin.accept()
            except OSError as error:
                log.warning("accept.failed", reason=error.strerror)
                gevent.sleep(0.1)
                continue
            gevent.spawn(answer, connection, verbs, {"ladder": self._trace.ladders.rows, "kick": self._kick})

    def _status(self) -> Rows:
        row = {"process": "packets", "pid": os.getpid(), "mode": self._mode.value}
        return [{**row, **self._front.status(), **self._engine.counts()}]

    def _metrics(self) -> Rows:
        counts = self._engine.counts()
        states = Counter(dict.fromkeys(("trying", "early", "confirmed", "failed"), 0))
        states.update(call.state for call in self._engine.calls())
        samples: list[Sample] = [
            *self._front.samples(),
            *((("algate_calls", state), number) for state, number in states.items()),
            (("algate_calls_total", "begun"), counts["begun"]),
            (("algate_calls_total", "answered"), counts["answered"]),
            (("algate_registrations",), counts["registered"]),
            (("algate_registrations_total",), counts["granted"]),
        ]
        return [metrics_row("packets", samples)]

    def _trace_rows(self) -> Rows:
        return [{**row, "process": "packets"} for row in self._trace.rows()]

    def _calls(self) -> Rows:
        self._front.look_at_traffic()
        leases = self._front.conversations.lease_ids()
        return call_rows(self._engine.calls(), leases, {}, time.monotonic(), transport="udp")

    def _kick(self, name: str) -> Rows:
        """Cut the media of the call with this Call-ID."""
        rows: Rows = []
        for call in self._engine.calls():
            if call.call_id == name:
                log.warning("call.kick", call=name, client=call.client, server=call.server)
                for media in call.media:
                    self._front.conversations.close(media.ref)
                rows.append({"id": name, "kind": "call", "client": call.client, "server": call.server})
        return rows

    def _watch_supervisor(self) -> None:
        while (heard := hear_supervisor(self._lifeline)) is not None:
            match heard[0]:
                case Ping():
                    send(self._lifeline, Pong())
                case Report():
                    log.info("status", **self._status()[0])
        log.error("supervisor.gone")
        os._exit(1)


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
    packets.run()


if __name__ == "__main__":
    main()

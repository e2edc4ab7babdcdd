"""A worker: gevent, no privilege. Entry module: `python -m gateway.process.worker BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys

if __name__ == "__main__":  # structlog loads rich where it is there: four megabytes that this process does not need
    sys.modules["rich"] = None  # type: ignore[assignment]

import _socket
import gc
import math
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import gevent
import gevent.socket as gsocket

from gateway.config.rules import policy_of
from gateway.driver.afterlife import Afterlife
from gateway.driver.announced import Announced
from gateway.flow.dial import CONNECT_TIMEOUT
from gateway.flow.table import HALF_CLOSE_TIMEOUT, IDLE_TIMEOUT, Flows
from gateway.front.accept import Acceptor
from gateway.model.errors import AlgateError
from gateway.net.addresses import OwnAddresses
from gateway.net.neighbours import Kernel, Neighbours
from gateway.net.relay.splice import Relay
from gateway.net.sockets import keep_alive_after
from gateway.observe.flow_log import FlowLog
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.pinhole.admission import LocalPorts
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.kernel import KernelPinholes
from gateway.pinhole.userspace import UserspacePinholes
from gateway.policy.clients import Clients
from gateway.policy.decide import PolicyInForce
from gateway.policy.limits import RuleLimits
from gateway.process.answers import Answers
from gateway.process.boot import Boot
from gateway.process.confine import hide, restrict_calls
from gateway.process.counts_file import shared_counts
from gateway.process.lifeline import (
    Commit,
    Departed,
    Done,
    File,
    Go,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    Report,
    Retire,
    Rollback,
    hear_supervisor,
    send,
)
from gateway.process.service import Ground, Service, most_of, room_of

log = get_logger()

GC_THRESHOLD = 20_000  # objects; flows leave no cycles, and looking through thousands of live ones takes long
HANDSHAKE_GRACE = 1.0  # seconds of the drain deadline that connections without a flow get
HANDSHAKES_END = 120.0  # seconds after which no handshake of an earlier configuration is left
ABORT_MARGIN = 0.5  # seconds of the drain deadline that are kept for the resets


class Worker:
    """All parts of one worker, built from its boot document."""

    def __init__(self, boot: Boot, flow_log: FlowLog) -> None:
        config = boot.config
        self._boot = boot
        relay = Relay(IDLE_TIMEOUT, HALF_CLOSE_TIMEOUT)
        counts = shared_counts(boot.counts, boot.slot)
        neighbours = Neighbours(config.inside_networks, Kernel())
        clients = Clients(counts, neighbours.identify, most_of(config), room_of(config))
        self._flows = Flows(f"w{boot.slot}", relay, flow_log, clients)
        broker = BrokerClient(socket.socket(fileno=boot.broker)) if boot.broker is not None else None
        admission = LocalPorts(broker, config.inside_networks) if broker else None
        self._userspace = UserspacePinholes(
            self._flows, config.pinhole_ports, config.pinhole.per_client, config.pinhole.rate, admission
        )
        self._acceptor = Acceptor(clients, relay.poller)
        afterlife = Afterlife()
        own = OwnAddresses()
        self._ground = Ground(
            relay,
            self._flows,
            self._acceptor,
            self._userspace,
            KernelPinholes(broker) if broker else self._userspace,
            broker,
            own,
            PolicyInForce(policy_of(config, datetime.now, own.has)),
            RuleLimits(counts, time.time() - time.monotonic(), neighbours.single),
            Announced(mmap.mmap(boot.files["announced"], 0), boot.slot),
            counts,
            clients,
            neighbours,
            afterlife,
            {},
        )
        self._service = Service(config, boot.files, self._ground)
        keep_alive_after(config.network.keepalive)
        self._next: tuple[Boot, Service] | None = None
        self._lifeline = gsocket.socket(fileno=boot.lifeline)
        self._listening: dict[int, Callable[[], None]] = {}  # by inode: how it is stopped
        self._stop = gevent.event.Event()
        self._grace = HANDSHAKE_GRACE
        self._deadline = math.inf  # when (monotonic) what still flows is cut
        self._lag = LagMeter()
        self._answers = Answers(
            f"worker-{boot.slot}", self._flows, self._userspace, self._acceptor, clients, relay, afterlife
        )

    def run(self) -> None:
        """Serve until SIGTERM, then drain; or until the supervisor is gone, then end at once."""
        if not self._boot.standby:
            self._listen(self._boot)
        admin = gevent.spawn(Acceptor().serve, gsocket.socket(fileno=self._boot.admin), self._answers.serve)
        gevent.signal_handler(signal.SIGTERM, lambda: self._end_within(self._boot.config.process.drain_timeout))
        gevent.spawn(self._obey)
        send(self._lifeline, Ready())
        self._stop.wait()
        for stop_accepting in self._listening.values():
            stop_accepting()
        self._drain()
        admin.kill()

    def _listen(self, boot: Boot) -> None:
        """Accept at all listeners of the document. Those that are known already go on as they are."""
        before, self._listening = self._listening, {}
        ways = (
            (boot.socks, self._accept_socks),
            (boot.tls, self._accept_tls),
            (boot.transparent, self._accept_transparent),
        )
        for fds, accept in ways:
            for fd in fds:
                inode = os.fstat(fd).st_ino
                if inode in before:
                    os.close(fd)
                    self._listening[inode] = before[inode]
                else:
                    self._listening[inode] = self._acceptor.listen(fd, accept)

    def _accept_socks(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        self._service.accept_socks(sock, address)

    def _accept_tls(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        self._service.accept_tls(sock, address)

    def _accept_transparent(self, sock: _socket.socket, address: tuple[object, ...]) -> None:
        self._service.accept_transparent(sock, address)

    def _end_within(self, seconds: float) -> None:
        """Stop accepting, and end with the last flow, or after `seconds` at the latest. If called again, the earlier
        time counts."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._stop.set()

    def _drain(self) -> None:
        """Let flows end. A handshake gets one second if there is little time."""
        grace = time.monotonic() + self._grace
        self._wait_until(lambda: not self._acceptor.handling or time.monotonic() >= grace)
        self._wait_until(lambda: not len(self._flows))
        if len(self._flows):
            log.warning("drain.cut", flows=len(self._flows))
            self._flows.abort_all()
            self._flows.wait_empty(ABORT_MARGIN)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition() and time.monotonic() < self._deadline - ABORT_MARGIN:
            gevent.sleep(0.02)

    # --- what the supervisor wants ----------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Obey the supervisor until it is gone. Without it nothing would replace or end this worker, so it ends, and
        the kernel resets what is open."""
        while (heard := hear_supervisor(self._lifeline)) is not None:
            message, fds = heard
            match message:
                case File(name):  # it has changed
                    self._service.authentication.update(name, fds[0])
                case Prepare():
                    send(self._lifeline, Prepared(self._prepare(fds)))
                case Commit():
                    send(self._lifeline, Done(self._commit()))
                case Rollback():
                    self._discard()
                case Go():
                    self._listen(self._boot)
                    send(self._lifeline, Done())
                case Retire(seconds):
                    self._grace = seconds
                    self._end_within(seconds)
                case Departed():
                    self._end_departed()
                case Report():
                    log.info("status", **self._answers.status()[0])
                case Ping():
                    send(self._lifeline, Pong())
        log.error("supervisor.gone")
        os._exit(1)

    def _prepare(self, fds: Sequence[int]) -> str:
        """Build what a new document describes. Returns the reason if that is not possible, otherwise ""."""
        boot = Boot.from_memfd(fds[0]).renumbered(fds[1:])
        for fd in boot.known_already():
            os.close(fd)
        self._discard()
        try:
            self._next = boot, Service(boot.config, boot.files, self._ground, self._service)
        except (AlgateError, OSError) as error:
            for fd in boot.own():
                os.close(fd)
            return str(error)
        return ""

    def _discard(self) -> None:
        """Forget what was prepared, if anything was."""
        if self._next is not None:
            (boot, _), self._next = self._next, None
            for fd in boot.own():
                os.close(fd)

    def _commit(self) -> int:
        """Use what was prepared. Returns how many flows are not allowed any more and were ended."""
        if self._next is None:
            return 0
        gevent.spawn_later(HANDSHAKES_END, self._service.authentication.close)
        log_before = self._boot.config.log.settings
        (self._boot, self._service), self._next = self._next, None
        if self._boot.config.log.settings != log_before:
            self._flows.use_log(_set_up_log(self._boot))
        self._service.take_over()
        self._listen(self._boot)
        gevent.spawn(self._audit_again, self._service)
        return self._service.audit.run()

    def _audit_again(self, service: Service) -> None:
        """Repeat the audit: flows that were decided by the old rules may still come about for as long as a dial
        takes."""
        for _ in range(int(CONNECT_TIMEOUT) + 1):
            gevent.sleep(1)
            if self._service is not service:
                return
            service.audit.run()

    def _end_departed(self) -> None:
        """Reset flows of an address that is gone, because nothing comes to it any more, and silence would be waited out
        for long."""
        for flow, host in self._flows.departed(self._ground.own.is_local):
            log.warning("flow.departed", **flow.names(), address=host)
            if flow.carrier is not None:
                flow.carrier.abort()
        self._userspace.close_departed(self._ground.own.is_local)


def _set_up_log(boot: Boot) -> FlowLog:
    return setup_logging(f"worker-{boot.slot}", boot.config.log.settings, later=gevent.get_hub().loop.run_callback)


def main() -> None:
    """Entry: the boot document's descriptor is the only argument."""
    hide()
    boot = Boot.from_memfd(int(sys.argv[1]))
    flow_log = _set_up_log(boot)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = Worker(boot, flow_log)
    except AlgateError as error:
        log.error("start.failed", reason=str(error))
        sys.exit(1)
    gc.freeze()  # what exists now stays, and need not be examined again
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    if reason := restrict_calls():
        log.warning("confine.unfiltered", reason=reason)
    worker.run()


if __name__ == "__main__":
    main()

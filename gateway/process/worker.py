"""A worker: gevent, no privilege. Entry module: `python -m gateway.process.worker BOOT_FD`."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import _socket
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import gevent
import gevent.socket as gsocket

from alg.registry import modules
from gateway.broker.client import BrokerClient
from gateway.dial import Dialer
from gateway.errors import AlgateError
from gateway.flow import HALF_CLOSE_TIMEOUT, IDLE_TIMEOUT, Flows
from gateway.flow_runner import FlowRunner
from gateway.front.bind import BindCommand
from gateway.front.connect import ConnectCommand
from gateway.front.lookup import Lookup
from gateway.front.quick import QuickSocks, QuickTransparent
from gateway.front.resolve_name import ResolveCommand
from gateway.front.rule_ident import RuleIdent
from gateway.front.socks import SocksFront
from gateway.front.transparent import TransparentFront
from gateway.front.udp_associate import UdpAssociateCommand
from gateway.front.udp_association import Options
from gateway.ident import IdentClient
from gateway.inspection import Pinholes
from gateway.observe.admin_wire import Rows, answer
from gateway.observe.counters import recent_rows
from gateway.observe.lag import LagMeter
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.metrics import metrics_row
from gateway.own_address import is_local
from gateway.pinhole.admission import Admission
from gateway.pinhole.kernel import KernelPinholes
from gateway.pinhole.userspace import UserspacePinholes
from gateway.policy import Policy
from gateway.process.accept import Acceptor, Quick
from gateway.process.authentication import Authentication
from gateway.process.boot import Boot
from gateway.process.lifeline import Ready, hear_supervisor, send
from gateway.quick_dial import QuickDialer, cooperative
from gateway.relay.splice import Relay
from gateway.resolve import resolver_of
from gateway.rule_limits import RuleLimits
from gateway.upstream import Upstreams, upstreams_of

log = get_logger()

GC_THRESHOLD = 20_000  # objects; flows leave no cycles, and looking through thousands of live ones takes long
ABORT_MARGIN = 0.5  # seconds of the drain deadline that are kept for the resets


class Worker:
    """Everything that one worker consists of, put together from its boot document."""

    def __init__(self, boot: Boot) -> None:
        config = boot.config
        self._boot = boot
        relay = Relay(IDLE_TIMEOUT, HALF_CLOSE_TIMEOUT)
        self._flows = Flows(f"w{boot.slot}", relay)
        broker = BrokerClient(socket.socket(fileno=boot.broker)) if boot.broker is not None else None
        admission = Admission(broker, config.inside_networks) if broker else None
        self._userspace = UserspacePinholes(self._flows, config.pinhole_ports, config.pinhole.per_client, admission)
        kernel: Pinholes = KernelPinholes(broker) if broker else self._userspace
        outside = config.network.outside
        source = outside if outside != "auto" and is_local(outside) else None
        policy, resolver = Policy.of(config, datetime.now), resolver_of(config.dns)
        limits = RuleLimits(config.worker_count)
        dialer = Dialer(policy, resolver, source, limits, Upstreams(upstreams_of(config)))
        lookup = Lookup(policy, resolver, limits)
        runner = FlowRunner(
            config,
            self._flows,
            modules(),
            {
                "transparent": self._userspace if config.pinhole.backend == "userspace" else kernel,
                "socks": kernel if config.pinhole.backend == "kernel" else self._userspace,
                "published": self._userspace,  # the server sees us as its client, so data has to come from us too
            },
            self._userspace,
        )
        self._authentication = Authentication(config.socks, boot.files)
        connect = ConnectCommand(dialer, runner)
        self._socks = SocksFront(
            {
                "connect": connect,
                "bind": BindCommand(lookup, self._userspace, self._flows, outside, config.socks.bind_timeout),
                "udp": UdpAssociateCommand(
                    lookup, self._userspace, self._flows, relay.wheel, config.pinhole_ports, Options.of(config)
                ),
                "resolve": ResolveCommand(lookup),
            },
            self._authentication.authenticator,
            config.socks.handshake_timeout,
            RuleIdent(policy, IdentClient(config.socks.ident_timeout), self._authentication.accounts),
        )
        self._transparent = TransparentFront(dialer, runner, config.published)
        self._lifeline = gsocket.socket(fileno=boot.lifeline)
        self._acceptor = Acceptor()
        quick = QuickDialer(policy, relay.wheel, source)
        self._quick_transparent = QuickTransparent(self._transparent, quick, runner, self._acceptor)
        self._quick_socks = QuickSocks(
            self._socks, connect, quick, runner, relay.wheel, config.socks.handshake_timeout, self._acceptor
        )
        self._accepting: list[Callable[[], None]] = []
        self._lag = LagMeter()

    def run(self) -> None:
        """Serve until SIGTERM, then drain; or until the supervisor is gone, then end at once."""
        boot = self._boot
        plain = boot.config.socks.auth == ("none",)
        socks = self._quick_socks.accept if plain else self._in_greenlet(self._socks.handle)
        for fds, handler in ((boot.socks, socks), (boot.transparent, self._quick_transparent.accept)):
            for fd in fds:
                self._accepting.append(self._acceptor.listen(fd, handler))
        admin = gevent.spawn(Acceptor().serve, gsocket.socket(fileno=boot.admin), self._answer)
        stop = gevent.event.Event()
        gevent.signal_handler(signal.SIGTERM, stop.set)
        gevent.spawn(self._watch_supervisor)
        send(self._lifeline, Ready())
        stop.wait()
        for stop_accepting in self._accepting:
            stop_accepting()
        timeout = max(0.0, boot.config.process.drain_timeout - ABORT_MARGIN)
        if not self._flows.wait_empty(timeout):
            log.warning("drain.cut", flows=len(self._flows))
            self._flows.abort_all()
            self._flows.wait_empty(ABORT_MARGIN)
        admin.kill()

    def _in_greenlet(self, handle: Callable[[gsocket.socket, tuple[object, ...]], None]) -> Quick:
        def accepted(sock: _socket.socket, address: tuple[object, ...]) -> None:
            self._acceptor.spawn(lambda: handle(cooperative(sock), address))

        return accepted

    def _watch_supervisor(self) -> None:
        """Without a supervisor nobody would replace or end us: go, and let the kernel reset what is open."""
        while (heard := hear_supervisor(self._lifeline)) is not None:
            message, fds = heard
            self._authentication.update(message.name, fds[0])  # a file that has changed
        log.error("supervisor.gone")
        os._exit(1)

    def _answer(self, connection: gsocket.socket, _address: tuple[object, ...]) -> None:
        verbs = {"status": self._status, "flows": self._flow_rows, "pinholes": self._userspace.rows}
        answer(connection, {**verbs, "metrics": self._metrics, "events": recent_rows})

    def _status(self) -> Rows:
        watchers = gevent.get_hub().loop.activecnt
        row: dict[str, Any] = {"process": f"worker-{self._boot.slot}", "pid": os.getpid()}
        return [{**row, **self._flows.totals(), "handling": self._acceptor.handling, "watchers": watchers}]

    def _metrics(self) -> Rows:
        samples = [*self._flows.samples(), *self._userspace.samples()]
        samples.append((("algate_connections", "handshake"), self._acceptor.handling))
        samples.append((("algate_connections", "flow"), len(self._flows)))
        return [metrics_row(f"worker-{self._boot.slot}", samples)]

    def _flow_rows(self) -> Rows:
        return [flow.row() for flow in self._flows]


def main() -> None:
    """Entry: the boot document's descriptor is the only argument."""
    boot = Boot.from_memfd(int(sys.argv[1]))
    setup_logging(f"worker-{boot.slot}", boot.config.log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = Worker(boot)
    except AlgateError as error:
        log.error("start.failed", reason=str(error))
        sys.exit(1)
    gc.freeze()  # what is there stays: nobody need look at it again
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    worker.run()


if __name__ == "__main__":
    main()

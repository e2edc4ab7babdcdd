"""The broker's process: `python -m gateway.process.broker BOOT_FD`, with CAP_NET_ADMIN and nothing else."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Iterator

from gateway.broker.forwards import Forward
from gateway.broker.limits import BrokerLimits
from gateway.broker.netfilter import Meter
from gateway.broker.server import Broker, Deferred
from gateway.config.schema import Config, parse_endpoint, port_range
from gateway.observe.log import setup_logging
from gateway.process.boot import Boot
from gateway.process.collector import collect_rarely
from gateway.process.confine import hide
from gateway.process.lifeline import (
    Busy,
    Commit,
    Done,
    Go,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    Report,
    hear_supervisor,
    send,
)

HOLDERS = 4  # ways by which a client may ask for one mapping: each hold is a pinhole
SWITCH = 0.0005  # seconds that a thread which only looks may keep Python's lock from the one that answers


class _Lifeline:
    """The supervisor as the broker sees it. `standby`: begin when it says so."""

    def __init__(self, lifeline: socket.socket, standby: bool) -> None:
        lifeline.setblocking(False)
        self._lifeline = lifeline
        self._standby = self._waiting = standby
        self._asked = standby  # whether the supervisor asks this process whether it lives
        self._next: Boot | None = None

    def fileno(self) -> int:
        return self._lifeline.fileno()

    def wait(self) -> bool:
        """Wait until the supervisor says that the broker may begin. Returns False if it will never be."""
        if self._waiting:
            send(self._lifeline, Ready())
        while self._waiting:
            select.select([self._lifeline], [], [])
            if not self.hear(None):
                return False
        return True

    def ready(self) -> None:
        send(self._lifeline, Done() if self._standby else Ready())
        self._asked = True

    def busy(self) -> None:
        if self._asked:
            with contextlib.suppress(OSError):  # it is full of what was said before, or the supervisor has died
                send(self._lifeline, Busy())

    def hear(self, broker: Broker | None) -> bool:
        try:
            heard = hear_supervisor(self._lifeline)
        except BlockingIOError:
            return True
        if heard is None:
            return False
        message, fds = heard
        match message:
            case Go():
                self._waiting = False
            case Prepare():
                self._next = Boot.from_memfd(fds[0])
                for fd in fds[1:]:  # all of them are here already
                    os.close(fd)
                send(self._lifeline, Prepared())
            case Commit() if broker is not None and self._next is not None:
                setup_logging("broker", self._next.config.log.settings, later=broker.deferred.later)
                send(self._lifeline, Done(broker.configure(limits_of(self._next))))
            case Report() if broker is not None:
                broker.report()
            case Ping():
                send(self._lifeline, Pong())
        return True


def limits_of(boot: Boot) -> BrokerLimits:
    """Return the limits of a configuration, and of the modules of each process."""
    config = boot.config
    signalling = config.module_ports("udp") if config.packets_wanted else ()
    inside = tuple(str(network) for network in config.inside_networks)
    return BrokerLimits(
        inside=config.inside_networks,
        ports=config.pinhole_ports,
        read_ports=config.read_ports,
        per_client=config.pinhole.per_client,
        rate=config.pinhole.rate,
        restore=config.rules.restore,
        meter=Meter(signalling, config.read_ports, inside, config.transparent.datagram_rate),
        signalling=signalling,
        kinds={slot: frozenset(kinds) for slot, kinds in boot.kinds.items()},
        reserved=frozenset(_own_ports(config)),
        mapping_ports=port_range(config.portmap.ports),
        mappings=HOLDERS * config.portmap.per_client,
        forwards=tuple(_forwards(config)),
        interfaces=tuple(config.network.inside_interfaces),
    )


def _forwards(config: Config) -> Iterator[Forward]:
    for entry in config.forward:
        yield Forward(entry.protocol, parse_endpoint(entry.outside), parse_endpoint(entry.inside), entry.from_ or None)


def _own_ports(config: Config) -> Iterator[int]:
    """Ports where this host serves, though nothing may listen there just now."""
    yield config.transparent.port
    yield from (endpoint.port for endpoint in config.socks_listeners.values())
    yield from (outside.port for outside in (*config.published, *config.published_datagrams.values()))
    for ports in config.portmap_ports.values():
        yield from ports
    if config.console.listen:
        yield parse_endpoint(config.console.listen).port


def main(boot: Boot) -> int:
    """Serve until the supervisor says otherwise. Returns the exit code."""
    deferred = Deferred()
    setup_logging("broker", boot.config.log.settings, later=deferred.later)
    supervisor = _Lifeline(socket.socket(fileno=boot.lifeline), boot.standby)
    broker = Broker(
        workers={slot: socket.socket(fileno=fd) for slot, fd in boot.workers.items()},
        limits=limits_of(boot),
        table=boot.config.instance,
        admin=socket.socket(fileno=boot.admin),
        supervisor=supervisor,
        deferred=deferred,
    )
    collect_rarely()
    sys.setswitchinterval(SWITCH)
    return broker.run() if supervisor.wait() else 0


if __name__ == "__main__":
    hide()
    sys.exit(main(Boot.from_memfd(int(sys.argv[1]))))

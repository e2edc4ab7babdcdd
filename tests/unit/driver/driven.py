"""A flow between two real TCP connections that a module of the test reads, and the relay goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import gevent
from gevent.event import AsyncResult
from gevent.socket import socket

from alg.address import Endpoint
from alg.api import PINHOLE_KINDS, AlgModule, Command, Deliver, Event, Mode, Received, Side
from alg.registry import traits_of
from gateway.driver.afterlife import Afterlife
from gateway.driver.guard import ModuleGuard
from gateway.driver.stream import Inspection
from gateway.driver.surroundings import Surroundings
from gateway.flow.table import Flow, Flows
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.net.relay.splice import Relay
from gateway.net.slices import slices
from gateway.net.sockets import prepare
from gateway.pinhole.backend import Backend, DataPaths
from gateway.pinhole.passage import Passage
from tests.unit.relay.ends import read_all, tcp_pair

PUBLIC = PublicAddress("127.0.0.1", "203.0.113.2")


class SlowBackend:
    """Answers after `delay` seconds: every other request with a pinhole, the others with a refusal."""

    outbound = True
    elsewhere = False

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked = 0
        self.open_now: set[str] = set()

    def open(self, request: PinholeRequest) -> Lease:
        self.asked += 1
        number = self.asked
        gevent.sleep(self.delay)
        if number % 2 == 0:
            raise PinholeRefused("port", "not this one")
        lease = Lease(
            id=f"p{number}",
            flow=request.flow,
            reason=request.reason,
            client=request.client,
            direction=request.direction,
            protocol=request.transport,
            public=Endpoint("203.0.113.2", 40000 + number),
            target=request.target,
            peer=request.peer,
            kind=request.kind,
            expires=0.0,
            backend="kernel",
        )
        self.open_now.add(lease.id)
        return lease

    def passage(self, lease: Lease) -> Passage | None:
        return None

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        done(PinholeRefused("none", "no conversations here"))

    def close(self, lease: Lease) -> None:
        self.open_now.discard(lease.id)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return {}


class Driven:
    """The flow; `client` and `server` are the ends that the test holds."""

    def __init__(
        self,
        relay: Relay,
        module: Any,
        *,
        guard: ModuleGuard | None = None,
        backend: SlowBackend | None = None,
        mode: Mode = Mode.REWRITE,
        early: bytes = b"",
        buffers: int = 0,
        ends: tuple[Endpoint, Endpoint] = (Endpoint("192.0.2.1", 4000), Endpoint("198.51.100.1", 21)),
        paths: DataPaths | None = None,
        wrap: Callable[[socket], socket] = lambda sock: sock,
    ) -> None:
        self.client, left = tcp_pair(buffers)
        self.server, right = tcp_pair(buffers)
        for sock in (left, right, self.client, self.server):
            prepare(sock)
            sock.settimeout(None)
        self.flows = Flows("w0", relay)
        self.flow: Flow = self.flows.add("transparent", *ends)
        self.flow.module = "test"
        self.backend = backend or SlowBackend()
        self.afterlife = Afterlife()
        around = Surroundings(
            cast(Backend, self.backend),
            cast(DataPaths, paths),
            {Side.SERVER: PUBLIC},
            lambda _other: False,
            lambda _target: True,
            guard or ModuleGuard(),
            self.afterlife,
            now=time.monotonic,
        )
        self._sockets = {Side.CLIENT: wrap(left), Side.SERVER: right}
        self.inspection = Inspection(self.flow, module, traits_of(module), mode, self._sockets, around)
        self.flow.hand_over(self.inspection)
        self.handed_over: AsyncResult[bool] = AsyncResult()
        self.running = gevent.spawn(self._run, early)

    def _run(self, early: bytes) -> None:
        legacy = self.inspection.run(early)
        if legacy is None:
            for sock in self._sockets.values():
                sock.close()
            self.flows.end(self.flow, self.inspection.reason)
        else:
            self.flows.relay(self.flow, self._sockets[Side.CLIENT], self._sockets[Side.SERVER], legacy=legacy)
        self.handed_over.set(legacy is not None)

    def finish(self) -> None:
        """Wait until the flow is over. AssertionError if it is not in time."""
        with gevent.Timeout(20, AssertionError("the flow does not end")):
            self.running.get()
            while len(self.flows):
                gevent.sleep(0.005)
        assert not len(slices())
        assert not self.backend.open_now

    def exchange(self, up: Callable[[], None], down: Callable[[], None]) -> tuple[bytes, bytes]:
        """Let both ends speak at once; what arrived at the server, and at the client."""
        speakers: list[Any] = [gevent.spawn(up), gevent.spawn(down)]
        ears = [gevent.spawn(read_all, self.server), gevent.spawn(read_all, self.client)]
        with gevent.Timeout(20, AssertionError("not everything arrives")):
            gevent.joinall([*speakers, *ears], raise_error=True)
        return ears[0].get(), ears[1].get()


class Plain:
    """A module that delivers everything at once; the others of these tests differ in some way."""

    kinds: ClassVar[tuple[str, ...]] = PINHOLE_KINDS

    def __init__(self, context: object = None) -> None:
        pass

    def handle(self, event: Event) -> Sequence[Command]:
        return [Deliver(event.side.other, event.data)] if isinstance(event, Received) else ()

    def deadline(self) -> float | None:
        return None


def as_module(module: Any) -> AlgModule:
    """For the type checker."""
    return cast(AlgModule, module)

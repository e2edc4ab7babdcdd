"""Carries a flow once both its sockets are connected: through its module, or straight to the relay."""

from __future__ import annotations

import _socket
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from alg.api import AlgModule, FlowContext, Mode, Side
from alg.registry import kinds_of, traits_of
from gateway.driver.afterlife import Afterlife
from gateway.driver.announced import Announced
from gateway.driver.guard import Broken, ModuleGuard
from gateway.driver.readers import StreamReader
from gateway.driver.stream import Inspection
from gateway.driver.surroundings import Surroundings
from gateway.flow.dial import Connection
from gateway.flow.table import Flow, Flows
from gateway.flow.upstream import Way
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along
from gateway.net.addresses import PublicAddress, is_local, public_address
from gateway.net.relay.poller import Watch
from gateway.net.sockets import abort, endpoint, prepare
from gateway.pinhole.backend import Backend, Carry, DataPaths
from gateway.pinhole.upstream import UpstreamPinholes
from gateway.policy.decide import Decision, PolicyInForce

log = structlog.get_logger()


class Means(NamedTuple):
    """What a worker gives to all flows that modules read.

    `pinholes`: by front. `look`: returns with which address the NAT sends a flow of this host on; raises
    PinholeRefused. `through`: makes the pinholes of a flow that goes through upstreams; None: those are not read.
    `as_client`: makes the data paths of a flow of a client with a server, to which the gateway speaks with the client's
    address; None: it never does.
    `shared`: by the name of a module, what its flows in this process have together.
    """

    pinholes: Mapping[str, Backend]
    paths: DataPaths
    guard: ModuleGuard
    announced: Announced
    afterlife: Afterlife
    shared: dict[str, dict[str, Any]]
    look: Callable[[Along], str] | None = None
    through: Callable[[Way], UpstreamPinholes] | None = None
    as_client: Callable[[Endpoint, Endpoint], DataPaths] | None = None


class Arrival(NamedTuple):
    """How a flow has come. `front`: its name. `client`: its endpoint; the kernel does not tell it any more when the
    client has reset the connection, but still has what it sent before. `early`: bytes of the client that came with its
    handshake and are meant for the server. `user`, `target`: for the log, the user and what was asked for.
    `published`: the endpoint that the client had dialled, if that is a published server, and `server` that one's."""

    front: str
    client: Endpoint
    early: bytes = b""
    user: str | None = None
    target: str | None = None
    published: Endpoint | None = None
    server: Endpoint | None = None


class End(NamedTuple):
    """One end of a flow: its address, its socket, which does not block, and the watch of that, if there is one."""

    endpoint: Endpoint
    sock: _socket.socket
    watch: Watch | None = None


class FlowRunner:
    """Runs flows for the fronts.

    `readers`: by the port of the server. `outside`: the address that is advertised for pinholes, or "auto".
    """

    def __init__(
        self, flows: Flows, readers: Mapping[int, StreamReader], outside: str, policy: PolicyInForce, means: Means
    ) -> None:
        self._flows = flows
        self._readers = readers
        self._outside = outside
        self._policy = policy
        self._means = means

    def run(
        self,
        client: gsocket.socket,
        server: gsocket.socket,
        arrival: Arrival,
        connection: Connection | None = None,
    ) -> None:
        """Carry a flow; owns both sockets from now on. Returns when the flow needs no greenlet any more.

        `connection`: how `server` was connected, if by a rule.
        """
        try:
            prepare(client)
            prepare(server)
            known = connection.server if connection else arrival.server
            flow = self._flows.add(
                arrival.front,
                arrival.client,
                known or endpoint(server.getpeername()),
                arrival.user,
                rule=connection.decision.rule if connection else "",
                target=arrival.target,
            )
        except OSError:  # one of them is gone already
            if connection is not None:
                connection.session.release()
            abort(client)
            abort(server)
            return
        way = None
        if connection is not None:
            flow.rate, flow.session = connection.decision.rate, connection.session
            way = connection.way
        reader = self._readers.get(flow.server.port)
        if way is not None and not (connection and connection.server and self._fits(reader)):
            reader = None
        seen = connection.seen if connection is not None else None
        if seen is not None and is_local(seen.host):  # a NAT may as well show an address that is not this host's
            flow.seen = seen.host
        early = arrival.early
        if reader is not None and (begun := self._begin(flow, reader, server, arrival.published, seen, way)):
            module, around = begun
            self._inspect(flow, module, reader.mode, {Side.CLIENT: client, Side.SERVER: server}, around, early)
            return
        if early:
            try:
                server.sendall(early)
                flow.count_early(len(early))
            except OSError:
                abort(client)
                abort(server)
                self._flows.end(flow, "reset")
                return
        self._flows.relay(flow, client, server)

    def has_module(self, port: int) -> bool:
        """Whether flows to a server's port go through a module."""
        return port in self._readers

    def join(self, front: str, client: End, server: End, early: bytes, decision: Decision) -> None:
        """Carry a flow that no module reads, without waiting. The other arguments are those of `Arrival`."""
        if early:
            try:
                sent = server.sock.send(early)
            except OSError:
                sent = 0
            if sent < len(early):  # what has come with a handshake is less than any socket's buffer: it is broken
                for end in (client, server):
                    if end.watch is not None:
                        end.watch.forget(closing=True)
                    abort(end.sock)
                return
        flow = self._flows.add(front, client.endpoint, server.endpoint, rule=decision.rule)
        flow.count_early(len(early))
        flow.rate = decision.rate
        self._flows.relay(flow, client.sock, server.sock, (client.watch, server.watch))

    def _begin(
        self,
        flow: Flow,
        reader: StreamReader,
        server: gsocket.socket,
        published: Endpoint | None,
        seen: Endpoint | None,
        way: Way | None,
    ) -> tuple[AlgModule, Surroundings] | None:
        """Make the module of a flow, and what it works with; None if the flow has to go on without it."""
        means, name = self._means, reader.name
        if means.guard.is_out(name) or means.announced.has(flow.client.host, flow.server):
            return None
        outside = self._outside
        own = endpoint(server.getsockname())
        facing = seen.host if seen is not None else own.host
        paths = means.paths
        if means.as_client is not None and own.host == flow.client.host:
            paths = means.as_client(flow.client, flow.server)
        if way is not None:  # where the server sees the flow is the upstream's to say, for each pinhole
            public = {Side.SERVER: PublicAddress(own.host, own.host)}
        elif published is None:
            along = Along("tcp", own, flow.server)
            public = {Side.SERVER: self._place(public_address(outside, facing), along, seen)}
        else:
            public = {
                Side.CLIENT: public_address(outside, published.host),
                Side.SERVER: PublicAddress(facing, facing),
            }
        inside = Side.SERVER if published else Side.CLIENT
        own = Endpoint(public[Side.SERVER].advertised, seen.port if seen is not None else own.port)
        found = Endpoint(public[Side.CLIENT].advertised, published.port) if published is not None else None

        def may_transfer(other: Endpoint) -> bool:
            return self._policy.current.permits_transfer(flow.client, flow.user, flow.server, other)

        def may_map(target: Endpoint) -> bool:
            return self._policy.current.permits_mapping(target, flow.user)

        transfers = may_transfer(flow.server)  # without a rule that names it, no other host needs to be asked for
        shared = means.shared.setdefault(name, {})
        context = FlowContext(
            flow.client, flow.server, inside, reader.options, own, transfers, shared, means.announced, found
        )
        try:
            module = means.guard.call(name, flow.id, _made, reader.kind, context)
        except Broken as broken:
            log.error("alg.broken", flow=flow.id, module=name, reason=str(broken))
            return None
        flow.module = name
        elsewhere = means.through(way) if way is not None and means.through is not None else None
        around = Surroundings(
            elsewhere or means.pinholes[flow.front],
            elsewhere or paths,
            public,
            may_transfer,
            may_map,
            means.guard,
            means.afterlife,
            means.announced.add,
        )
        if published is None and elsewhere is None and "read" in kinds_of(reader.kind):
            return module, replace(around, read=functools.partial(self._carrier, reader, around))
        return module, around

    def _carrier(self, reader: StreamReader, around: Surroundings, reason: str) -> Carry:
        """Return what carries a connection that has come through a pinhole of a flow, through another module of its
        kind, which may open what the first one may, but for further connections to be read."""

        def carry(flow: Flow, client: gsocket.socket, server: gsocket.socket) -> None:
            shared = self._means.shared.setdefault(reader.name, {})
            context = FlowContext(
                flow.client,
                flow.server,
                Side.CLIENT,
                reader.options,
                shared=shared,
                board=self._means.announced,
                opened_as=reason,
            )
            try:
                module = around.guard.call(reader.name, flow.id, _made, reader.kind, context)
            except Broken as broken:
                log.error("alg.broken", flow=flow.id, module=reader.name, reason=str(broken))
                self._flows.relay(flow, client, server)
                return
            flow.module = reader.name
            self._inspect(flow, module, reader.mode, {Side.CLIENT: client, Side.SERVER: server}, around, b"")

        return carry

    def _inspect(
        self,
        flow: Flow,
        module: AlgModule,
        mode: Mode,
        sockets: dict[Side, gsocket.socket],
        around: Surroundings,
        early: bytes,
    ) -> None:
        """Drive the module until the flow is over, or goes on without it."""
        inspection = Inspection(flow, module, traits_of(module), mode, sockets, around)
        flow.hand_over(inspection)
        legacy = None
        try:
            legacy = inspection.run(early)
        finally:
            if legacy is None:
                for sock in sockets.values():
                    sock.close()
                self._flows.end(flow, flow.ended_by or inspection.reason)
        if legacy is not None:
            self._flows.relay(flow, sockets[Side.CLIENT], sockets[Side.SERVER], legacy=legacy)

    def _place(self, public: PublicAddress, along: Along, seen: Endpoint | None) -> PublicAddress:
        """Return where pinholes of the flow are, if the configuration does not say so."""
        host = public.local
        if host != public.advertised or self._outside == public.advertised:
            return public
        if seen is None:
            if self._means.look is None:
                return public
            try:
                host = self._means.look(along)
            except PinholeRefused:
                return public
        return PublicAddress(public.local if seen is None and not is_local(host) else host, host, along)

    def _fits(self, reader: StreamReader | None) -> bool:
        """Whether a module has all that it asks for where a flow goes through upstreams: connections of the server to
        the client, but no conversations, and nothing that anybody may use."""
        return self._means.through is not None and reader is not None and kinds_of(reader.kind) == {"once"}


def _made(kind: Callable[[FlowContext], AlgModule], context: FlowContext) -> AlgModule:
    """Make a module, and look that what it declares can be read."""
    module = kind(context)
    traits_of(module)
    return module

"""Carries a flow once both its sockets are connected: through its module, or straight to the relay."""

from __future__ import annotations

import _socket
from collections.abc import Callable, Mapping

import gevent.socket as gsocket
import msgspec
import structlog

from alg.address import Endpoint
from alg.api import AlgModule, FlowContext, Mode, Side
from alg.registry import options_of, traits_of
from gateway.config.schema import AlgSection, Config
from gateway.driver.afterlife import Afterlife
from gateway.driver.announced import Announced
from gateway.driver.guard import Broken, Guard
from gateway.driver.stream import Inspection, Surroundings
from gateway.flow.dial import Connection
from gateway.flow.table import Flow, Flows
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along
from gateway.net.addresses import PublicAddress, is_local, public_address
from gateway.net.relay.poller import Watches
from gateway.net.sockets import abort, endpoint, prepare
from gateway.pinhole.backend import Backend, DataPaths
from gateway.policy.decide import Decision, Policy

log = structlog.get_logger()


class FlowRunner:
    """Runs flows for the fronts. `modules` by name, `pinholes` by front. If a configured module is not installed, that
    is logged, and its flows are relayed unread."""

    def __init__(
        self,
        config: Config,
        flows: Flows,
        modules: Mapping[str, type[AlgModule]],
        pinholes: Mapping[str, Backend],
        paths: DataPaths,
        policy: Policy,
        guard: Guard,
        announced: Announced,
        afterlife: Afterlife,
        look: Callable[[Along], str] | None = None,
    ) -> None:
        """`look`: returns with which address the NAT sends a flow of this host on; raises PinholeRefused."""
        self._guard = guard
        self._afterlife = afterlife
        self._announced = announced
        self._look = look
        self._policy = policy
        self._config = config
        self._flows = flows
        self._modules = modules
        self._pinholes = pinholes
        self._paths = paths
        self._module_ports = frozenset(config.module_ports())
        self._options = {
            name: _options(modules[name], section) for name, section in config.alg.items() if name in modules
        }

    def run(
        self,
        front: str,
        client: gsocket.socket,
        server: gsocket.socket,
        *,
        early: bytes = b"",
        user: str | None = None,
        target: str | None = None,
        published: Endpoint | None = None,
        connection: Connection | None = None,
    ) -> None:
        """Carry a flow; owns both sockets from now on. Returns when the flow needs no greenlet any more.

        `early`: bytes of the client that came with its handshake and are meant for the server. `user`, `target`: for
        the log, the user and what was asked for. `published`: the endpoint that the client had dialled, if that is a
        published server. `connection`: how `server` was connected, if by a rule.
        """
        try:
            prepare(client)
            prepare(server)
            facing = endpoint(server.getpeername())
            flow = self._flows.add(
                front,
                endpoint(client.getpeername()),
                (connection.server if connection else None) or facing,
                user,
                rule=connection.decision.rule if connection else "",
                target=target,
            )
        except OSError:  # one of them is gone already
            if connection is not None:
                connection.session.release()
            abort(client)
            abort(server)
            return
        through_upstream = False
        if connection is not None:
            decision = connection.decision
            flow.rate, flow.session = decision.rate, connection.session
            through_upstream = bool(decision.via or decision.chain)
        # The server behind an upstream sees that one's address, so nothing that we could open would be found.
        responsible = None if through_upstream else self._config.module_of(flow.server.port)
        seen = connection.seen if connection is not None else None
        if seen is not None and is_local(seen.host):  # a NAT may as well show an address that is not this host's
            flow.seen = seen.host
        if responsible is not None and (begun := self._begin(flow, *responsible, server, published, seen)):
            module, around = begun
            self._inspect(flow, module, responsible[1].mode, {Side.CLIENT: client, Side.SERVER: server}, around, early)
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
        return port in self._module_ports

    def join(
        self,
        front: str,
        client: Endpoint,
        client_sock: _socket.socket,
        server: Endpoint,
        server_sock: _socket.socket,
        early: bytes,
        decision: Decision,
        watches: Watches,
    ) -> None:
        """Carry a flow that no module reads, with sockets that do not block, and without waiting. `watches`: those of
        the client's and the server's socket. The other arguments are those of `run`."""
        if early:
            try:
                sent = server_sock.send(early)
            except OSError:
                sent = 0
            if sent < len(early):  # what has come with a handshake is less than any socket's buffer: it is broken
                for watch in watches:
                    if watch is not None:
                        watch.forget(closing=True)
                abort(client_sock)
                abort(server_sock)
                return
        flow = self._flows.add(front, client, server, rule=decision.rule)
        flow.count_early(len(early))
        flow.rate = decision.rate
        self._flows.relay(flow, client_sock, server_sock, watches)

    def _begin(
        self,
        flow: Flow,
        name: str,
        section: AlgSection,
        server: gsocket.socket,
        published: Endpoint | None,
        seen: Endpoint | None,
    ) -> tuple[AlgModule, Surroundings] | None:
        """Make the module `name` for a flow, and what it works with; None if the flow has to go on without it."""
        kind = self._modules.get(name)
        if kind is None or self._guard.is_out(name) or self._announced.has(flow.client.host, flow.server):
            return None
        outside = self._config.network.outside
        own = endpoint(server.getsockname())
        facing = seen.host if seen is not None else own.host
        if published is None:
            along = Along("tcp", own, endpoint(server.getpeername()))
            public = {Side.SERVER: self._place(public_address(outside, facing), along, seen)}
        else:
            public = {
                Side.CLIENT: public_address(outside, published.host),
                Side.SERVER: PublicAddress(facing, facing),
            }
        inside = Side.SERVER if published else Side.CLIENT
        own = Endpoint(public[Side.SERVER].advertised, seen.port if seen is not None else own.port)

        def may_transfer(other: Endpoint) -> bool:
            return self._policy.permits_transfer(flow.client, flow.user, flow.server, other)

        transfers = may_transfer(flow.server)  # without a rule that names it, no other host needs to be asked for
        context = FlowContext(flow.client, flow.server, inside, self._options[name], own, transfers)
        try:
            module = self._guard.call(name, flow.id, kind, context)
        except Broken as broken:
            log.error("alg.broken", flow=flow.id, module=name, reason=str(broken))
            return None
        flow.module = name
        return module, Surroundings(
            self._pinholes[flow.front],
            self._paths,
            public,
            may_transfer,
            self._guard,
            self._afterlife,
            self._announced.add,
        )

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
        if host != public.advertised or self._config.network.outside == public.advertised:
            return public
        if seen is None:
            if self._look is None:
                return public
            try:
                host = self._look(along)
            except PinholeRefused:
                return public
        return PublicAddress(public.local if seen is None and not is_local(host) else host, host, along)


def _options(module: type[AlgModule], section: AlgSection) -> object | None:
    """Return the module's own keys as its `Options`. They have been checked."""
    options = options_of(module)
    return None if options is None else msgspec.convert(section.options, options)

"""The part of a worker that depends on the configuration: its fronts, over the flows and pinholes that outlive a
configuration."""

from __future__ import annotations

import _socket
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import gevent.socket as gsocket

from alg.address import Endpoint
from alg.datagrams import DatagramContext, DatagramModule
from gateway.config.check import parse_host_port, parse_name_server
from gateway.config.rules import policy_of
from gateway.config.schema import Config
from gateway.config.schema_rules import DnsSection
from gateway.driver.afterlife import Afterlife
from gateway.driver.announced import Announced
from gateway.driver.guard import ModuleGuard
from gateway.driver.readers import DatagramReader
from gateway.driver.runner import FlowRunner, Means
from gateway.flow.audit import Audit
from gateway.flow.dial import Dialer
from gateway.flow.lookup import Lookup
from gateway.flow.quick_dial import QuickDialer, cooperative
from gateway.flow.table import Flows
from gateway.flow.upstream import Tls, Upstream, Upstreams
from gateway.front.accept import Acceptor, Quick, room_for_connections
from gateway.front.auth.ident import IdentClient
from gateway.front.socks.bind import BindCommand
from gateway.front.socks.connect import ConnectCommand
from gateway.front.socks.quick import QuickSocks, QuickTransparent
from gateway.front.socks.resolve import ResolveCommand
from gateway.front.socks.rule_ident import RuleIdent
from gateway.front.socks.server import SocksCommand, SocksFront
from gateway.front.socks.tls import TlsFront
from gateway.front.transparent.tcp import TransparentFront
from gateway.front.udp.associate import UdpAssociateCommand
from gateway.front.udp.association import AssociationMeans
from gateway.front.udp.reader import MessageReader
from gateway.front.udp.routes import AssociationOptions
from gateway.model.certificates import client_context
from gateway.model.requests import CommandName
from gateway.net.addresses import OwnAddresses
from gateway.net.neighbours import Neighbours
from gateway.net.relay.splice import Relay
from gateway.net.resolver import Resolver
from gateway.net.sockets import keep_alive_after
from gateway.pinhole.backend import Backend
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.client_paths import ClientPaths
from gateway.pinhole.split import SplitPinholes
from gateway.pinhole.upstream import UpstreamPinholes
from gateway.pinhole.userspace import UserspacePinholes
from gateway.policy.clients import Clients, HoldingKind
from gateway.policy.decide import PolicyInForce
from gateway.policy.limits import RuleLimits
from gateway.policy.shared_counts import SharedCounts
from gateway.process.authentication import Authentication
from gateway.process.installed import datagram_readers, installed, stream_readers

LOOKUPS = 2048  # names that a worker resolves at a time; each holds some 40 KB


class Ground(NamedTuple):
    """The part of a worker that outlives a configuration. `own`: what the kernel says about addresses. `kernel`: the
    backend of unconfigured clients' pinholes. `shared`: what the flows of a module have together, by its name."""

    relay: Relay
    flows: Flows
    acceptor: Acceptor
    userspace: UserspacePinholes
    kernel: Backend
    broker: BrokerClient | None
    own: OwnAddresses
    policy: PolicyInForce
    limits: RuleLimits
    announced: Announced
    counts: SharedCounts
    clients: Clients
    neighbours: Neighbours
    afterlife: Afterlife
    shared: dict[str, dict[str, Any]]


class Service:
    """The fronts. What has begun under an earlier configuration asks the same policy, so it knows the new rules.

    `files`: descriptors by name (see Boot). `before`: the service that this one follows.
    """

    def __init__(self, config: Config, files: Mapping[str, int], ground: Ground, before: Service | None = None) -> None:
        self._config = config
        self._ground = ground
        self._rules = policy_of(config, datetime.now, ground.own.has)
        flows, userspace, kernel, policy = ground.flows, ground.userspace, ground.kernel, ground.policy
        outside = config.network.outside
        source = outside if outside != "auto" and ground.own.is_local(outside) else None
        resolver, upstreams = resolver_of(config.dns), Upstreams(upstreams_of(config))
        broker = ground.broker if config.pinhole.backend != "userspace" else None
        as_client = broker.connect if broker is not None else None
        dialer = Dialer(policy, resolver, source, ground.limits, upstreams, ground.clients, as_client)
        lookup = Lookup(policy, resolver, ground.limits, ground.clients)
        of_socks = _of_socks(config.pinhole.backend, userspace, kernel)
        streams, datagrams = installed(config)
        pinholes = {
            "transparent": userspace if config.pinhole.backend == "userspace" else kernel,
            "socks": of_socks,
            # The server sees us as its client, so connections have to come from us too; datagrams the kernel has.
            "published": userspace if config.pinhole.backend == "userspace" else SplitPinholes(userspace, kernel),
        }
        look = ground.broker.seen if ground.broker is not None else None
        through = partial(UpstreamPinholes, userspace)
        paths = partial(ClientPaths, userspace, as_client) if as_client is not None and source is None else None
        means = Means(
            pinholes, userspace, ModuleGuard(), ground.announced, ground.afterlife, ground.shared, look, through, paths
        )
        runner = FlowRunner(flows, stream_readers(config, streams), outside, policy, means)
        earlier = before.authentication if before is not None else None
        self.authentication: Authentication = Authentication(
            config.socks, files, ground.counts, ground.neighbours.single, earlier
        )
        accounts = self.authentication.accounts
        connect = ConnectCommand(dialer, runner)
        commands: dict[CommandName, SocksCommand] = {
            "connect": connect,
            "bind": BindCommand(lookup, userspace, flows, outside, config.socks.bind_timeout),
            "udp": UdpAssociateCommand(
                AssociationMeans(
                    lookup,
                    userspace,
                    association_options(config),
                    _readers(datagram_readers(config, datagrams), of_socks, policy, means.guard),
                ),
                flows,
                ground.relay.wheel,
                config.pinhole_ports,
            ),
            "resolve": ResolveCommand(lookup),
        }
        rule_ident = RuleIdent(policy, IdentClient(config.socks.ident_timeout), accounts)
        parts = (commands, self.authentication.authenticator, config.socks.handshake_timeout, rule_ident)
        self._socks = SocksFront(*parts, config.socks.protocols)
        transparent = TransparentFront(dialer, runner, config.published)
        by_policy = ground.own.routes_by_policy if as_client is not None and source is None else None
        quick = QuickDialer(policy, ground.relay, source, by_policy)
        quick_socks = QuickSocks(
            self._socks, connect, quick, runner, ground.relay, config.socks.handshake_timeout, ground.acceptor
        )
        inside_tls = SocksFront(*parts, (*config.socks.protocols, "http"))
        tls = TlsFront(inside_tls, self.authentication.tls_context, accounts, config.socks.handshake_timeout)
        self.accept_tls: Quick = self._in_greenlet(tls.handle)
        plain = config.socks.auth == ("none",) and "socks5" in config.socks.protocols
        self.accept_socks: Quick = quick_socks.accept if plain else self._in_greenlet(self._socks.handle)
        self.accept_transparent: Quick = QuickTransparent(transparent, quick, runner, ground.acceptor).accept
        self.audit = Audit(flows, policy, accounts.groups, upstreams, config.published.values())

    def take_over(self) -> None:
        """Apply this configuration's rules and limits from now on, also to what is under way."""
        config = self._config
        keep_alive_after(config.network.keepalive)
        self._ground.policy.current = self._rules
        self._ground.clients.configure(most_of(config), room_of(config))
        self._ground.neighbours.inside = config.inside_networks
        self._ground.userspace.configure(
            config.pinhole_ports, config.pinhole.per_client, config.pinhole.rate, config.inside_networks
        )

    def _in_greenlet(self, handle: Callable[[gsocket.socket, tuple[object, ...]], None]) -> Quick:
        def accepted(sock: _socket.socket, address: tuple[object, ...]) -> None:
            self._ground.acceptor.spawn(lambda: handle(cooperative(sock), address), str(address[0]))

        return accepted


def most_of(config: Config) -> dict[HoldingKind, int]:
    """Return how many of each kind a client may have."""
    return {kind: getattr(config.limits, kind.label) for kind in HoldingKind}


def room_of(config: Config) -> dict[HoldingKind, int]:
    """Return how many of each kind one worker has room for: by its descriptors, its part of the ports, and names that
    wait."""
    connections = room_for_connections()
    low, high = config.pinhole_ports
    return {
        HoldingKind.FLOWS: connections,
        HoldingKind.HANDSHAKES: 2 * connections,  # a handshake has no server yet
        HoldingKind.ASSOCIATIONS: (high - low + 1) // 2 // config.worker_count,
        HoldingKind.LOOKUPS: LOOKUPS,
    }


def _of_socks(backend: str, userspace: UserspacePinholes, kernel: Backend) -> Backend:
    """Return the backend for pinholes of SOCKS clients, as `pinhole.backend` says."""
    if backend == "auto":
        return SplitPinholes(userspace, kernel)
    return kernel if backend == "kernel" else userspace


def _readers(
    readers: Mapping[int, DatagramReader], pinholes: Backend, policy: PolicyInForce, guard: ModuleGuard
) -> Mapping[int, MessageReader]:
    """Return the modules that read datagrams of SOCKS clients, by the ports of their targets."""
    return {port: _message_reader(reader, pinholes, policy, guard) for port, reader in readers.items()}


def _message_reader(
    reader: DatagramReader, pinholes: Backend, policy: PolicyInForce, guard: ModuleGuard
) -> MessageReader:
    kind = reader.kind

    def may_map(target: Endpoint, user: str | None) -> bool:
        return policy.current.permits_mapping(target, user)

    def make(client: Endpoint, public: Endpoint) -> tuple[DatagramModule, float | None]:
        return kind.make(DatagramContext(reader.options, fixed=(client, public)))

    return MessageReader(kind.name, reader.mode, pinholes, make, kind.shown, may_map, guard, kind.kinds)


def upstreams_of(config: Config) -> dict[str, Upstream]:
    """Return the upstreams of a configuration, by name."""
    found = {}
    for section in config.upstream:
        host, port = parse_host_port(section.address)
        password = config.loaded.passwords.get(section.name, "")
        remote = section.resolve == "remote"
        tls = None
        if section.tls:
            loaded = config.loaded
            context = client_context(
                loaded.authorities.get(section.name, ""), loaded.certificates.get(section.name, "")
            )
            tls = Tls(context, section.server_name or host)
        found[section.name] = Upstream(section.name, section.kind, host, port, section.user, password, remote, tls)
    return found


def association_options(config: Config) -> AssociationOptions:
    """Return the options of UDP associations."""
    socks = config.socks
    return AssociationOptions(
        socks.udp_answers == "open",
        socks.udp_fragments == "reassemble",
        socks.udp_idle_timeout,
        config.network.outside,
    )


def resolver_of(section: DnsSection) -> Resolver:
    """Return the resolver that [dns] describes. Raises ValueError if the address of a name server is wrong."""
    servers = [parse_name_server(text) for text in section.servers]
    return Resolver(section.timeout, cache_size=section.cache_size, servers=servers)

"""Checks what the broker allows, whichever process asks. Pure.

A worker parses what strangers send, so it may have been taken over, and nothing that it says is believed. A pinhole
leads to the client that owns it and nowhere else, from one named peer, once, for minutes at most, and to no port of a
service.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import re
from collections.abc import Sequence

import msgspec

from alg.address import Address, Endpoint
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along, Lease, Network, PinholeRequest, PinholeUpdate, transports_of

LOWEST_PORT = 1024
SHORTEST_TTL = 1.0
LONGEST_TTL = 300.0
LONGEST_CONVERSATION = 7200.0
"""Registrations are renewed by the hour (RFC 3261, 10.2). A module that wants a longer time refreshes."""
MOST_PEERS = 8
LARGEST_CALL_ID = 65535

_TCP_SERVICES = frozenset(
    {
        1080,  # SOCKS
        1433,  # Microsoft SQL Server
        1521,  # Oracle
        2049,  # NFS
        2375,  # Docker
        3306,  # MySQL, MariaDB
        3389,  # Remote Desktop
        5432,  # PostgreSQL
        5900,  # VNC
        5985,  # Windows Remote Management
        6379,  # Redis
        8080,  # HTTP, as most devices serve their administration
        9100,  # printers
        9200,  # Elasticsearch
        11211,  # memcached
        27017,  # MongoDB
    }
)
_UDP_SERVICES = frozenset(
    {
        1434,  # Microsoft SQL Server's browser
        1900,  # SSDP (UPnP)
        2049,  # NFS
        3702,  # WS-Discovery
        5351,  # NAT-PMP, PCP
        5353,  # mDNS
        11211,  # memcached
    }
)
SERVICE_PORTS = {"tcp": _TCP_SERVICES, "udp": _UDP_SERVICES}
"""Ports above 1023 at which services without good authentication often listen, and which are rarely ephemeral ports of
common systems: a client that names one as its data port is more likely a victim of slipstreaming. For UDP the list has
only ports that answer strangers, because phones choose their media ports anywhere (decision 0050). The list is for
targets inside: a server outside may use any passive port, and a client may reach its services anyway."""

_BROADCAST = ipaddress.ip_address("255.255.255.255")
_FLOW = re.compile(r"[A-Za-z0-9._:-]{1,32}")
_REASON = re.compile(r"[a-z0-9.-]{1,24}")
_LEASE_ID = re.compile(r"[0-9a-f]{16}")


def valid_lease_id(text: str) -> bool:
    """Whether `text` looks like the id of a lease."""
    return _LEASE_ID.fullmatch(text) is not None


def check_request(request: PinholeRequest, inside: Sequence[Network]) -> None:
    """Raise PinholeRefused unless the kernel backend may open this pinhole. `inside`: the networks of clients.

    Whether `public_host` is an address of this host is found out later, by binding it.
    """
    if not _FLOW.fullmatch(request.flow):
        raise PinholeRefused("flow", "not the id of a flow")
    if not _REASON.fullmatch(request.reason):
        raise PinholeRefused("reason", "not a reason")
    if request.kind != "mapping" and (request.transport == "tcp+udp" or request.suggested is not None or request.exact):
        raise PinholeRefused("kind", "only a mapping has both transports, or a suggested port")
    if (request.kind == "gre") != (request.transport == "gre"):
        raise PinholeRefused("kind", "GRE has a kind of its own")
    if request.kind != "exchange" and (request.outer, request.outer_second, request.inner_host) != (None, None, None):
        raise PinholeRefused("kind", "only an exchange has an outer socket")
    _check_ttl(request.ttl, LONGEST_TTL if request.single else LONGEST_CONVERSATION)
    client = _address("client", request.client)
    if request.along is not None:
        _check_along(request.along, client, inside)
    if request.kind == "local":
        _check_local(request, client, inside)
        return
    if request.kind == "exchange":
        _check_exchange(request, client, inside)
        return
    if request.visitor is not None:
        raise PinholeRefused("visitor", "of a worker's own ports and of exchanges only")
    if not _within(client, inside):
        raise PinholeRefused("client", f"{client} is not inside")
    if request.kind == "gre":
        _check_gre(request, client, inside)
        return
    for transport in transports_of(request.transport):
        target = _target(request.target, transport, inside=request.direction == "in")
    if request.kind == "mapping":
        _check_mapping(request, client, target, inside)
        return
    if request.kind in ("conversation", "read"):
        _check_conversation(request, client, target, inside)
        return
    if request.peers != () or request.second is not None:
        raise PinholeRefused("kind", "only a conversation has peers and a second port")
    if request.kind not in ("once", "anybody"):
        raise PinholeRefused("kind", f"{request.kind} is no kind")
    if request.direction == "in":
        _check_inbound(request, client, target, inside)
    else:
        _check_outbound(request, client, target, inside)


def check_public(request: PinholeRequest, inside: Sequence[Network]) -> None:
    """Raise PinholeRefused unless a request that `check_request` let pass may have the public address that was found
    since then."""
    if request.public_host is not None:
        _check_public(request.public_host, _address("client", request.client), inside)


def check_update(update: PinholeUpdate, lease: Lease, inside: Sequence[Network]) -> None:
    """Raise PinholeRefused unless the open conversation `lease` may be changed like this."""
    if update.ttl is not msgspec.UNSET:
        _check_ttl(update.ttl, LONGEST_CONVERSATION)
    if lease.kind == "exchange":
        target = lease.target if update.target is msgspec.UNSET else update.target
        if target.host != lease.target.host or update.peers is not msgspec.UNSET:
            raise PinholeRefused("target", "the server and the client of an exchange do not change")
        _check_server_ports(target, None if update.second is msgspec.UNSET else update.second)
        return
    if lease.kind == "mapping":
        if (update.target, update.second) != (msgspec.UNSET, msgspec.UNSET):
            raise PinholeRefused("target", "the target of a mapping does not change")
        if update.peers is not msgspec.UNSET:
            _check_prefixes(update.peers, lease.target.version)
        return
    if lease.kind == "gre":
        if (update.target, update.peers) != (msgspec.UNSET, msgspec.UNSET):
            raise PinholeRefused("target", "the client and the server of a call do not change")
        if update.second is not msgspec.UNSET:
            _check_call(update.second)
        return
    target = lease.target if update.target is msgspec.UNSET else update.target
    if update.target is not msgspec.UNSET and _target(target, "udp") != _address("client", lease.client):
        raise PinholeRefused("target", f"{target.host} is not the client {lease.client}")
    if update.second is not msgspec.UNSET:
        _check_second(target, update.second)
    if update.peers is not msgspec.UNSET:
        _check_peers(update.peers, lease.target.version, inside)


def check_flow(along: Along, inside: Sequence[Network]) -> Address:
    """Raise PinholeRefused unless it is a flow with a host outside; return its source."""
    source, destination = (_address("along", end.host) for end in (along.source, along.destination))
    if not 1 <= along.source.port <= 65535 or not 1 <= along.destination.port <= 65535:
        raise PinholeRefused("along", "not a port")
    if not 0 <= along.mark <= 0xFFFFFFFF or not 0 <= along.device <= 0x7FFFFFFF:
        raise PinholeRefused("along", "not a mark or a device")
    if _within(destination, inside):
        raise PinholeRefused("along", f"{destination} is inside")
    if source.version != destination.version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")
    return source


def _check_along(along: Along, client: Address, inside: Sequence[Network]) -> None:
    """Check that it is a flow of the client, or of this host for the client."""
    source = check_flow(along, inside)
    if source != client and _within(source, inside):
        raise PinholeRefused("along", f"{source} is not the client {client}")
    if source.version != client.version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")


def check_connection(client: Endpoint, server: Endpoint, port: int, inside: Sequence[Network]) -> None:
    """Raise PinholeRefused unless the gateway may connect to `server` with this client's address; `port`: that of a
    data connection to the same host, or 0."""
    if port and not LOWEST_PORT <= port <= 65535:
        raise PinholeRefused("port", f"{port} is no port for data")
    address = _address("client", client.host)
    if not _within(address, inside):
        raise PinholeRefused("client", f"{client.host} is not inside")
    check_flow(Along("tcp", client, server), inside)


def _check_local(request: PinholeRequest, client: Address, inside: Sequence[Network]) -> None:
    """Check a request for a worker's own port: the worker listens, checks the peer and relays, and netfilter lets the
    peer in as well.

    Either the peer is outside and the target is the client's own; or the peer is the client, and the target is the
    worker's business (for example, the client of a published server): such a pinhole only lets the client reach the
    worker.
    """
    if not _within(client, inside):
        raise PinholeRefused("client", f"{client} is not inside")
    if request.direction != "in" or request.second is not None:
        raise PinholeRefused("local", "a worker listens at one port")
    if request.public_host is None:
        raise PinholeRefused("public", "no public address")
    target = _address("target", request.target.host)
    if not 1 <= request.target.port <= 65535:
        raise PinholeRefused("port", f"{request.target.port} is not a port")
    if request.transport == "tcp" and request.peer == request.client:
        if request.peers != ():
            raise PinholeRefused("kind", "only a conversation has peers")
        if not client.version == _address("public", request.public_host).version == target.version:
            raise PinholeRefused("family", "IPv4 and IPv6 are mixed")
        if request.visitor not in (None, request.target.host):
            raise PinholeRefused("visitor", "neither end of the pinhole")
        return
    if request.visitor is not None and (request.transport != "tcp" or request.visitor != request.peer):
        raise PinholeRefused("visitor", "neither end of the pinhole")
    if target != client:
        raise PinholeRefused("target", "not the client's own")
    _check_public(request.public_host, client, inside)
    if request.transport == "udp":
        if request.peer is not None:
            raise PinholeRefused("peer", "the peers of a conversation stand in peers")
        _check_peers(request.peers, client.version, inside)
    elif request.peers != ():
        raise PinholeRefused("kind", "only a conversation has peers")
    elif request.peer is not None:
        _check_peers((request.peer,), client.version, inside)


def _check_conversation(request: PinholeRequest, client: Address, target: Address, inside: Sequence[Network]) -> None:
    if request.transport != "udp" or request.direction != "in":
        raise PinholeRefused("kind", "only UDP, and only inbound, has conversations")
    if target != client:
        raise PinholeRefused("target", f"{target} is not the client {client}")
    if request.peer is not None:
        raise PinholeRefused("peer", "the peers of a conversation stand in peers")
    if request.second is not None:
        _check_second(request.target, request.second)
    if request.public_host is not None:
        _check_public(request.public_host, client, inside)
    _check_peers(request.peers, client.version, inside)


def _check_mapping(request: PinholeRequest, client: Address, target: Address, inside: Sequence[Network]) -> None:
    if request.direction != "in" or request.second is not None or request.peer is not None:
        raise PinholeRefused("kind", "a mapping is inbound, and has one port and no single peer")
    if target != client:
        raise PinholeRefused("target", f"{target} is not the client {client}")
    if request.suggested is None:
        if request.exact:
            raise PinholeRefused("wish", "no port is suggested")
    elif not LOWEST_PORT <= request.suggested <= 65535:
        raise PinholeRefused("wish", f"{request.suggested} is not between {LOWEST_PORT} and 65535")
    if request.public_host is not None:
        _check_public(request.public_host, client, inside)
    _check_prefixes(request.peers, client.version)


def _check_prefixes(peers: tuple[str, ...] | None, version: int) -> None:
    """Check the prefixes of a mapping: each in canonical form and of the right family, and none within another one,
    because the kernel refuses overlapping elements."""
    if peers is None:
        return
    if len(peers) > MOST_PEERS:
        raise PinholeRefused("peers", f"more than {MOST_PEERS}")
    networks: list[Network] = []
    for text in peers:
        try:
            network = ipaddress.ip_network(text if len(text) <= 49 else "")
        except ValueError:
            raise PinholeRefused("peers", "not a prefix") from None
        if str(network) != text or network.version != version:
            raise PinholeRefused("peers", f"{network} is of the other family, or not written so")
        if not network.prefixlen:
            raise PinholeRefused("peers", "a prefix of all addresses says nothing")
        networks.append(network)
    for at, network in enumerate(networks):
        if any(network.overlaps(other) for other in networks[:at]):
            raise PinholeRefused("peers", f"{network} overlaps another one")


def _check_exchange(request: PinholeRequest, client: Address, inside: Sequence[Network]) -> None:
    """`client` is the server inside; the visitor is outside, and each is shown an address of this host."""
    outer, inner = request.outer, request.inner_host
    if not _within(client, inside):
        raise PinholeRefused("client", f"{client} is not inside")
    if request.direction != "in" or request.transport != "udp" or request.peer is not None or request.peers != ():
        raise PinholeRefused("kind", "an exchange is of UDP, inbound, and of two sockets")
    if outer is None or inner is None or request.public_host is None:
        raise PinholeRefused("public", "an exchange has two addresses of this host")
    if (request.second is None) != (request.outer_second is None):
        raise PinholeRefused("ports", "both ends have one port, or both have two")
    if _address("target", request.target.host) != client:
        raise PinholeRefused("target", f"{request.target.host} is not the server {client}")
    _check_server_ports(request.target, request.second)
    visitor = _target(outer, "udp", inside=False)
    if request.outer_second is not None:
        _target(Endpoint(outer.host, request.outer_second), "udp", inside=False)
        if request.outer_second == outer.port:
            raise PinholeRefused("port", "both ports of a pair are the same")
    if request.visitor != outer.host or _within(visitor, inside):
        raise PinholeRefused("visitor", f"{outer.host} is inside, or not the visitor")
    if not client.version == visitor.version == _address("public", inner).version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")
    _check_public(request.public_host, client, inside)


def _check_gre(request: PinholeRequest, client: Address, inside: Sequence[Network]) -> None:
    """Check a call of PPTP: it is between the client and one server outside, which cannot be changed later."""
    if request.direction != "in" or request.peers != ():
        raise PinholeRefused("kind", "GRE is inbound, and from one peer")
    if client.version != 4:
        raise PinholeRefused("family", "calls of GRE are of IPv4")
    if _address("target", request.target.host) != client:
        raise PinholeRefused("target", f"{request.target.host} is not the client {client}")
    _check_call(request.target.port)
    if request.second is not None:
        _check_call(request.second)
    if request.public_host is not None:
        _check_public(request.public_host, client, inside)
    if request.peer is None:
        raise PinholeRefused("peer", "the server has to be known")
    _check_peers((request.peer,), client.version, inside)


def _check_call(number: int) -> None:
    if not 0 <= number <= LARGEST_CALL_ID:
        raise PinholeRefused("port", f"{number} is no call ID")


def _check_server_ports(target: Endpoint, second: int | None) -> None:
    """Check the ports of the server of an exchange. Port 0 is one that is not known yet."""
    if target.port:
        _target(target, "udp")
    if second:
        _target(Endpoint(target.host, second), "udp")
        if second == target.port:
            raise PinholeRefused("port", "both ports of a pair are the same")


def _check_second(target: Endpoint, second: int) -> None:
    _target(Endpoint(target.host, second), "udp")
    if second == target.port:
        raise PinholeRefused("port", "both ports of a pair are the same")


def _check_peers(peers: tuple[str, ...] | None, version: int, inside: Sequence[Network]) -> None:
    if peers is None:
        return
    if len(peers) > MOST_PEERS or len(set(peers)) != len(peers):
        raise PinholeRefused("peers", f"more than {MOST_PEERS}, or one of them twice")
    for text in peers:
        peer = _address("peers", text)
        if _within(peer, inside):
            raise PinholeRefused("peers", f"{peer} is inside")
        if peer.version != version:
            raise PinholeRefused("family", "IPv4 and IPv6 are mixed")


def _check_ttl(ttl: float, longest: float) -> None:
    if not (math.isfinite(ttl) and SHORTEST_TTL <= ttl <= longest):
        raise PinholeRefused("ttl", f"not between {SHORTEST_TTL:g} and {longest:g} seconds")


def _check_public(text: str, client: Address, inside: Sequence[Network]) -> None:
    public = _address("public", text)
    if _within(public, inside):
        raise PinholeRefused("public", f"{public} is inside")
    if client.version != public.version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")


def _check_inbound(request: PinholeRequest, client: Address, target: Address, inside: Sequence[Network]) -> None:
    if target != client:
        raise PinholeRefused("target", f"{target} is not the client {client}")
    if request.public_host is not None:
        _check_public(request.public_host, client, inside)
    elif request.along is None:  # then the broker has found that nothing is translated
        raise PinholeRefused("public", "no public address")
    if request.kind == "anybody":
        if request.peer is not None or request.transport != "tcp":
            raise PinholeRefused("peer", "one connection of TCP, from nobody in particular")
        return
    if request.peer is None:
        raise PinholeRefused("peer", "the peer has to be known")
    peer = _address("peer", request.peer)
    if _within(peer, inside):
        raise PinholeRefused("peer", f"{peer} is inside")
    if client.version != peer.version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")


def _check_outbound(request: PinholeRequest, client: Address, target: Address, inside: Sequence[Network]) -> None:
    if request.kind == "anybody":
        raise PinholeRefused("kind", "only inbound is anybody let in")
    if request.peer is not None or (request.public_host is not None and request.along is None):
        raise PinholeRefused("peer", "an outbound pinhole has neither peer nor public address")
    if request.public_host is not None:
        _check_public(request.public_host, client, inside)
    if _within(target, inside):
        raise PinholeRefused("target", f"{target} is inside")
    if client.version != target.version:
        raise PinholeRefused("family", "IPv4 and IPv6 are mixed")


def _target(endpoint: Endpoint, transport: str, inside: bool = True) -> Address:
    """Check where a pinhole may lead. `inside`: the target is a host inside, whose services must stay closed."""
    if not LOWEST_PORT <= endpoint.port <= 65535:
        raise PinholeRefused("port", f"{endpoint.port} is not between {LOWEST_PORT} and 65535")
    if inside and endpoint.port in SERVICE_PORTS.get(transport, _TCP_SERVICES):
        raise PinholeRefused("port", f"{endpoint.port} is the port of a service")
    return _address("target", endpoint.host)


@functools.lru_cache(maxsize=4096)
def _address(rule: str, text: str) -> Address:
    """Parse a unicast address into its canonical spelling (two spellings would be two keys).

    Results are remembered, because the same few addresses come again and again; refusals are not.
    """
    if len(text) > 45:
        raise PinholeRefused(rule, "not an address")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise PinholeRefused(rule, "not an address") from None
    if str(address) != text:
        raise PinholeRefused(rule, f"{text} is not written as {address}")
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
        raise PinholeRefused(rule, f"{address} is not a unicast address that is routed")
    if address == _BROADCAST:
        raise PinholeRefused(rule, f"{address} is a broadcast address")
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise PinholeRefused(rule, f"{address} is an IPv4 address in disguise or has a zone")
    return address


def _within(address: Address, networks: Sequence[Network]) -> bool:
    number, version = int(address), address.version
    return any(low <= number <= high for of, low, high in _ranges(networks) if of == version)


def _ranges(networks: Sequence[Network]) -> Sequence[tuple[int, int, int]]:
    """Family, first and last address of each network. Those of a tuple, which cannot change, are remembered: they are
    asked for thousands of times a second."""
    if networks is _remembered.networks:
        return _remembered.ranges
    ranges = [(network.version, int(network.network_address), int(network.broadcast_address)) for network in networks]
    if isinstance(networks, tuple):
        _remembered.networks, _remembered.ranges = networks, ranges
    return ranges


class _Remembered:
    def __init__(self) -> None:
        self.networks: Sequence[Network] | None = None
        self.ranges: Sequence[tuple[int, int, int]] = ()


_remembered = _Remembered()

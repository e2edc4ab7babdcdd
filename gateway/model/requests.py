"""Values that several rooms share: what a client asks for, and what a pinhole is. Frozen, and plain enough for IPC."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Literal

import msgspec

from alg.address import Endpoint
from alg.api import PinholeKind
from gateway.model.errors import PinholeRefused

AuthName = Literal["none", "ident", "password", "gssapi"]
ProtocolName = Literal["socks5", "socks4", "http"]
CommandName = Literal["connect", "bind", "udp", "resolve", "transparent", "fxp", "map"]
Transport = Literal["tcp", "udp"]
Direction = Literal["in", "out"]
Protocol = Literal["tcp", "udp", "tcp+udp", "gre"]
"""What a pinhole is for: one transport, or both on one port; or the GRE of PPTP, which has call IDs in
place of ports."""
Kind = Literal[PinholeKind, "local"]
"""Kinds of pinholes: those that a module may ask for, and a worker's own ports. `once`: one connection, from one
peer. `anybody`: one connection, from whoever is first. `conversation`: datagrams both ways between one inside socket
and its peers, until it is closed or its time is over. `read`: the same, and a module reads what comes. `local`: a
port of this host at which a worker listens: one connection of TCP, or datagrams. `mapping`: any number of connections
and datagrams to one inside socket. `exchange`: datagrams between a server inside and a client outside, both
translated. `gre`: the packets of one call of PPTP, both ways."""
LogLevel = Literal["", "debug", "info", "warning", "error"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConnectRequest(msgspec.Struct, frozen=True):
    """A client's request to reach a server: `policy` decides on it, and `dial` carries it out.

    `host` is a name or the text of an IP address, as `model.hosts.read_host` spells it. `user` is the authenticated
    name, if any, and `groups` are the user's groups. The command "fxp" is never dialled: it stands for a transfer
    between the client's server and another one.
    Neither is "map": the client asks for a public port that leads to its own `port`, and `host` is not looked at.
    """

    command: CommandName
    client: Endpoint
    host: str
    port: int
    user: str | None = None
    groups: tuple[str, ...] = ()


class Along(msgspec.Struct, frozen=True):
    """The flow for which a pinhole is requested: from the socket `source` to `destination`, before any translation. The
    address with which the NAT sends this flow on is the address for its pinholes.

    `mark` of its packets and `device` (the interface by which they leave; 0: the one that the routes say) describe the
    first packet of a flow over UDP, which connection tracking does not know yet.
    """

    transport: Transport
    source: Endpoint
    destination: Endpoint
    mark: int = 0
    device: int = 0


class PinholeRequest(msgspec.Struct, frozen=True):
    """A request for a pinhole.

    `flow` is the id of the flow, `reason` a stable word such as "ftp.port", `client` the address of the inside client
    that owns the pinhole, `ttl` the seconds until it closes unused.

    direction "in": connections of `peer` to a port of `public_host` (an address of this host) lead to `target`, an
    endpoint of the client. The gateway chooses the port. direction "out": the client may connect to `target` outside;
    `peer` and `public_host` are None.

    `kind` "conversation" (UDP, direction "in", kernel only): a port for datagrams both ways, until it is closed or its
    time is over (docs/pinholes.md). `peer` is None, and `peers` are the addresses that may send in,
    from any port; (): none yet; None: all hosts. `second` is the target's port behind a second public port, which is
    the next number (RTP and RTCP; the first one is even then). `public_host` None: nothing is translated, public is
    target.

    `kind` "read": a conversation whose datagrams a module reads; its port is one of those that iptables hands to the
    queue. `kind` "local": a worker of this host listens at the public port itself, and netfilter lets the peer in where
    INPUT drops.

    `kind` "anybody": `peer` is None, and the first host that comes is let in. `kind` "mapping" (kernel only): any
    number of connections and datagrams of `peers`, which are prefixes here, as "198.51.100.0/24", or None for all
    hosts. `suggested` is the public port that is wanted if it is free, `exact`: that one or none; no other kind has it.

    `kind` "exchange" (UDP, kernel only): between `target`, a socket of the server inside, which is the `client` here
    (port 0: not known yet), and `outer`, a socket of the client outside, who is the `visitor`. That one finds the
    server at the public port, and the server finds it at a port of `inner_host`, an address of this host too.
    `outer_second`: the port of RTCP beside `outer`; `second` is the server's (0: not known yet).

    `kind` "gre" (kernel only, IPv4): the packets of one call of PPTP (RFC 2637, 4.1) between the client and the server
    `peer`. In place of ports they have call IDs: `target` has the client's own, the public endpoint the one that the
    server has to use, and `second` is the server's (None: not known yet, so nothing leaves by this pinhole).

    `visitor`: the outside client that uses a published server; the pinhole counts against its quota, not the server's.
    `find`: nothing is opened; the answer is the lease of the open conversation of `target`, in any process. `along`:
    the broker finds out by itself with which address this flow is seen, and `public_host` is ignored; where the flow is
    not translated, public is target. A pinhole of direction "out" uses the same address.
    """

    flow: str
    reason: str
    client: str
    direction: Direction
    transport: Protocol
    target: Endpoint
    peer: str | None
    public_host: str | None
    ttl: float
    kind: Kind = "once"
    peers: tuple[str, ...] | None = ()
    second: int | None = None
    visitor: str | None = None
    find: bool = False
    along: Along | None = None
    suggested: int | None = msgspec.field(default=None, name="wish")  # as other versions of the broker know it
    exact: bool = False
    outer: Endpoint | None = None
    outer_second: int | None = None
    inner_host: str | None = None

    @property
    def single(self) -> bool:
        """Whether the pinhole is for one connection."""
        return is_single(self.kind, self.transport)


class PinholeUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to change the open conversation, mapping or exchange `lease`. Fields that are UNSET do not change.

    `ttl`: seconds from now. `peers`, `target` and `second` as in PinholeRequest. `second` can be given only to a
    pinhole that has one, or of kind "gre". The public ports never change.
    """

    lease: str
    ttl: float | msgspec.UnsetType = msgspec.UNSET
    peers: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    target: Endpoint | msgspec.UnsetType = msgspec.UNSET
    second: int | msgspec.UnsetType = msgspec.UNSET


class Traffic(msgspec.Struct, frozen=True):
    """What has passed through a conversation: packets in, packets out, and the bytes of both (whole IP packets)."""

    packets_in: int = 0
    packets_out: int = 0
    bytes: int = 0


class Lease(msgspec.Struct, frozen=True):
    """An open pinhole and its owner. `expires` is Unix time in seconds. For direction "out" `public` is `target`.

    `kind`, `peers`, `second`, `visitor` as in PinholeRequest; port `public.port + 1` leads to `second` of the target.
    `follows`: the address from which a connection of direction "out" has to come; None: any that the NAT chooses.
    `outer`, `outer_second` as in PinholeRequest; `inner`: where the server of an exchange finds its client.
    """

    id: str
    flow: str
    reason: str
    client: str
    direction: Direction
    protocol: Protocol
    public: Endpoint
    target: Endpoint
    peer: str | None
    expires: float
    backend: Literal["kernel", "userspace"]
    kind: Kind = "once"
    peers: tuple[str, ...] | None = ()
    second: int | None = None
    visitor: str | None = None
    follows: str | None = None
    outer: Endpoint | None = None
    outer_second: int | None = None
    inner: Endpoint | None = None

    @property
    def single(self) -> bool:
        """Whether the pinhole is for one connection."""
        return is_single(self.kind, self.protocol)


def transports_of(protocol: Protocol) -> tuple[Transport, ...]:
    """The transports whose ports a pinhole has; GRE has none."""
    if protocol == "gre":
        return ()
    return ("tcp", "udp") if protocol == "tcp+udp" else (protocol,)


def is_single(kind: Kind, transport: Protocol) -> bool:
    """Whether a pinhole of this kind is for one connection, and used up by it."""
    return kind in ("once", "anybody") or (kind == "local" and transport == "tcp")


Done = Callable[[Lease | PinholeRefused], None]
"""A callback for the result of a request: the pinhole as it is now, or the reason why it was refused."""

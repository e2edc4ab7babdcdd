"""Values that cross rooms: what a client asks for, what a pinhole is. Frozen, and plain enough to go over IPC."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Literal

import msgspec

from alg.address import Endpoint
from gateway.model.errors import PinholeRefused

CommandName = Literal["connect", "bind", "udp", "resolve", "transparent", "fxp"]
Transport = Literal["tcp", "udp"]
Direction = Literal["in", "out"]
Kind = Literal["once", "conversation", "read", "local"]
"""Kinds of pinholes. `once`: one connection, from one peer. `conversation`: datagrams both ways between one inside
socket and its peers, until it is closed or its time is over. `read`: the same, and a module reads what comes. `local`:
a port of this host at which a worker listens: one connection of TCP, or datagrams."""
LogLevel = Literal["", "debug", "info", "warning", "error"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConnectRequest(msgspec.Struct, frozen=True):
    """A client's wish to reach a server: what `policy` decides on and `dial` carries out.

    `host` is a name or the text of an IP address; `user` is the authenticated name, if any, and `groups` are its own.
    Command "fxp" is never dialled: the client's server is to exchange files with it.
    """

    command: CommandName
    client: Endpoint
    host: str
    port: int
    user: str | None = None
    groups: tuple[str, ...] = ()


class Along(msgspec.Struct, frozen=True):
    """The flow in which a pinhole is asked for: from the socket `source` to `destination`, as packets are before any
    translation. What the NAT makes of that flow says at which address its pinholes are.

    `mark` (of its packets) and `device` (the interface by which they leave, 0: as the routes say): of the first packet
    of a flow over UDP, which nothing remembers yet.
    """

    transport: Transport
    source: Endpoint
    destination: Endpoint
    mark: int = 0
    device: int = 0


class PinholeRequest(msgspec.Struct, frozen=True):
    """A wish for a pinhole.

    direction "in": connections of `peer` to a port of `public_host` (an address of this host; the port is chosen by
    the gateway) lead to `target`, which is the flow's `client`.
    direction "out": the flow's `client` may connect to `target` outside; `peer` and `public_host` are None.
    `client` is the address of the inside client that owns it, `flow` the id of the flow, `reason` as "ftp.port",
    `ttl` seconds until it closes unused.

    `kind` "conversation" (UDP, direction "in", kernel only): a port for a conversation, both ways, until it is closed
    or its time is over; docs/decisions/0035-udp-pinholes.md. Then `peer` is None and `peers` says who may send in, from
    any port of theirs: addresses, () for nobody yet, None for anybody. `second` is the target's port behind a second
    public port, the next one (RTP and RTCP: the first is even then). `public_host` None: nothing is translated, public
    is target. Kind "read": the same, but its datagrams are for a module to read, so the port is one of those that
    iptables hands to the queue. Kind "local": a worker of this host listens at the public port itself; netfilter lets
    the peer in (where INPUT drops).
    `visitor`: for whom a published server's port is, a client outside: it counts as that one's, not as the server's.
    `find`: nothing is opened; the answer is the lease of the conversation that `target` has, whoever holds it.
    `along`: the broker finds out by itself at which address this flow is seen; `public_host` says nothing then. Where
    the flow is not translated, public is target. A pinhole of direction "out" comes from the same address.
    """

    flow: str
    reason: str
    client: str
    direction: Direction
    transport: Transport
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

    @property
    def single(self) -> bool:
        """Whether it is for one connection."""
        return is_single(self.kind, self.transport)


class PinholeUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish to change the open conversation `lease`; what is UNSET stays as it is.

    `ttl`: seconds from now; `peers`, `target` and `second` as in PinholeRequest. `second` can be given only to a
    pinhole that has one. The public ports never change.
    """

    lease: str
    ttl: float | msgspec.UnsetType = msgspec.UNSET
    peers: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    target: Endpoint | msgspec.UnsetType = msgspec.UNSET
    second: int | msgspec.UnsetType = msgspec.UNSET


class Traffic(msgspec.Struct, frozen=True):
    """What has passed through a conversation: packets in and out, and bytes of both (of IP packets)."""

    packets_in: int = 0
    packets_out: int = 0
    bytes: int = 0


class Lease(msgspec.Struct, frozen=True):
    """An open pinhole and who holds it. `expires` is Unix time in seconds. For direction "out" `public` is `target`.

    `kind`, `peers`, `second`, `visitor` as in PinholeRequest: port `public.port + 1` leads to `second` of the target.
    `follows`: from which address a connection of direction "out" is to come; None: from whichever the NAT chooses.
    """

    id: str
    flow: str
    reason: str
    client: str
    direction: Direction
    protocol: Transport
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

    @property
    def single(self) -> bool:
        """Whether it is for one connection."""
        return is_single(self.kind, self.protocol)


def is_single(kind: Kind, transport: Transport) -> bool:
    """Whether a pinhole of this kind is for one connection, and used up by it."""
    return kind == "once" or (kind == "local" and transport == "tcp")


Done = Callable[[Lease | PinholeRefused], None]
"""Who is told what became of a wish: the pinhole as it is now, or why not."""

"""Which inside socket has which public port: one, whatever asked for it first. Pure.

Several leases may be of one inside socket: a mapping of it and a conversation, or the conversations of two flows. They
share its public port, and each has its own peers, time and end.
"""

from __future__ import annotations

from alg.address import Endpoint
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest, Transport, transports_of

Socket = tuple[Transport, str, int]
"""Transport, address and port: a plain tuple, because several are made and looked up for each lease."""

SHARING = frozenset({"conversation", "read", "mapping"})
"""Kinds whose leases may share a public port."""


_WITH_SOCKETS = SHARING | {"exchange"}


class PublicSockets:
    """The sockets of the leases of one table."""

    def __init__(self) -> None:
        self._public: dict[Socket, dict[str, Endpoint]] = {}  # by inside socket and lease: the (first) public endpoint
        self._holders: dict[Socket, int] = {}  # by public socket: how many leases have it

    def add(self, lease: Lease) -> None:
        """Add the sockets of a lease."""
        for socket, public in sockets_of(lease):
            of_leases = self._public.get(socket)
            if of_leases is None:
                self._public[socket] = {lease.id: public}
            else:
                of_leases[lease.id] = public
        for socket in public_of(lease):
            self._holders[socket] = self._holders.get(socket, 0) + 1

    def remove(self, lease: Lease) -> bool:
        """Remove the sockets of a lease. Returns whether no other lease has any of its public ports."""
        for socket, _ in sockets_of(lease):
            of_leases = self._public[socket]
            if len(of_leases) > 1:
                del of_leases[lease.id]
            else:
                del self._public[socket]
        free = True
        for socket in public_of(lease):
            left = self._holders[socket] - 1
            if left:
                self._holders[socket] = left
                free = False
            else:
                del self._holders[socket]
        return free

    def is_held(self, transport: Transport, public: Endpoint) -> bool:
        """Whether a lease has this public port."""
        return (transport, public.host, public.port) in self._holders

    def of(self, transport: Transport, inside: Endpoint) -> list[str]:
        """The ids of the leases of an inside socket."""
        return [*self._public.get((transport, inside.host, inside.port), ())]

    def sharing(self, lease: Lease) -> list[str]:
        """Return the ids of other leases that have a socket in common with this one."""
        if lease.kind not in _WITH_SOCKETS:
            return []
        found: dict[str, None] = {}
        for socket, _ in sockets_of(lease):
            of_leases = self._public.get(socket)
            if of_leases is not None and (len(of_leases) > 1 or lease.id not in of_leases):  # else it is alone
                found.update(dict.fromkeys(of_leases))
        found.pop(lease.id, None)
        return [*found]

    def bound(self, request: PinholeRequest) -> Endpoint | None:
        """The (first) public endpoint that the sockets of a request have already; None: they have none. Raises
        PinholeRefused "taken" if they cannot have one together."""
        first: Endpoint | None = None
        host = request.target.host
        for transport in transports_of(request.transport):
            for offset, port in enumerate((request.target.port, request.second)):
                there = self._public.get((transport, host, port)) if port else None
                if port is None or there is None:
                    continue
                for public in set(there.values()):
                    begins = Endpoint(public.host, public.port - offset)
                    if first not in (None, begins) or not self._fits(request, begins):
                        raise PinholeRefused("taken", f"{Endpoint(host, port)} has the public port {public}")
                    first = begins
        return first

    def _fits(self, request: PinholeRequest, public: Endpoint) -> bool:
        if request.kind not in SHARING or (request.second is not None and public.port % 2):
            return False
        return public.host == (request.public_host or request.target.host)


def sockets_of(lease: Lease) -> list[tuple[Socket, Endpoint]]:
    """Return the inside sockets whose packets leave from a public port, each with that port."""
    if lease.backend != "kernel":
        return []
    found: list[tuple[Socket, Endpoint]] = []
    target, public = lease.target, lease.public
    if lease.kind in SHARING:
        for transport in transports_of(lease.protocol):
            found.append(((transport, target.host, target.port), public))
        if lease.second is not None:
            found.append((("udp", target.host, lease.second), Endpoint(public.host, public.port + 1)))
    elif lease.kind == "exchange" and lease.outer is not None and lease.inner is not None:
        ends = [(target, public), (lease.outer, lease.inner)]
        if lease.outer_second is not None:
            ends += [
                (Endpoint(inside.host, port or 0), Endpoint(outside.host, outside.port + 1))
                for (inside, outside), port in zip(ends, (lease.second, lease.outer_second), strict=True)
            ]
        found += [(("udp", inside.host, inside.port), outside) for inside, outside in ends if inside.port]
    return found


def public_of(lease: Lease) -> list[Socket]:
    """The public ports of a lease; of an exchange also those at the inner address."""
    return [
        (transport, first.host, first.port + offset)
        for first, count in public_ranges(lease)
        for transport in transports_of(lease.protocol)
        for offset in range(count)
    ]


def public_ranges(lease: Lease) -> list[tuple[Endpoint, int]]:
    """The first of the public ports of a lease, and how many it has from there on."""
    if lease.direction != "in":
        return []
    count = 1 if lease.second is None else 2
    return [(lease.public, count)] if lease.inner is None else [(lease.public, count), (lease.inner, count)]

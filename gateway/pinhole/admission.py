"""Ports at which a worker listens itself, and which the router's INPUT chain would not let any host reach.

If there is a broker, it chooses the port and lets the peer in. So there is one table of leases, one quota and one range
of ports, whether the kernel or a worker serves them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from gateway.lease.validate import LONGEST_CONVERSATION, LONGEST_TTL, SHORTEST_TTL
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, Network, PinholeRequest, PinholeUpdate
from gateway.pinhole.client import BrokerClient

_TRIES = 3  # another program may take a port between the broker's look and our bind

T = TypeVar("T")


class LocalPorts:
    """Asks the broker for a worker's own ports, if their peer or their target is in `inside`; the broker knows no
    others."""

    def __init__(self, broker: BrokerClient, inside: Sequence[Network]) -> None:
        self._broker = broker
        self.inside = tuple(inside)
        self._open: set[str] = set()

    def concerns(self, request: PinholeRequest) -> bool:
        """Whether the broker has to be asked for this pinhole. It knows none that leads to the other address family."""
        owner = self._owner(request)
        return owner is not None and (":" in (request.public_host or "")) == (":" in owner)

    def _owner(self, request: PinholeRequest) -> str | None:
        """Return the end that is inside: the peer if it is (the pinhole is then opened for it), otherwise the
        target."""
        candidates = (request.peer if request.transport == "tcp" else None, request.target.host)
        return next((host for host in candidates if host is not None and self._is_inside(host)), None)

    def _is_inside(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        return any(address in network for network in self.inside)

    def reserve(self, request: PinholeRequest, make: Callable[[str, int], T]) -> tuple[Lease, T]:
        """Return a lease, and what `make(host, port)` bound at its public port. Raises PinholeRefused."""
        udp = request.transport == "udp"
        owner = self._owner(request) or request.client
        request = msgspec.structs.replace(
            request,
            flow=request.flow or "socks",
            client=owner,
            visitor=request.client if not udp and owner != request.client else None,
            kind="local",
            along=None,
            ttl=max(SHORTEST_TTL, min(request.ttl, LONGEST_CONVERSATION if udp else LONGEST_TTL)),
            peer=None if udp else request.peer,
            peers=((request.peer,) if request.peer is not None else None) if udp else (),
        )
        for _ in range(_TRIES):
            lease = self._broker.open(request)
            try:
                made = make(lease.public.host, lease.public.port)
            except OSError:
                self._broker.close(lease.id)
                continue
            self._open.add(lease.id)
            # The worker's own rules are those that it asked for.
            return msgspec.structs.replace(
                lease, client=request.client, flow=request.flow, kind=request.kind, peer=request.peer, peers=()
            ), made
        raise PinholeRefused("ports", "another program took each port first")

    def renew(self, lease_id: str, ttl: float) -> None:
        """Let a conversation live for `ttl` seconds from now. Ids that the broker does not know are ignored."""
        if lease_id in self._open:
            try:
                self._broker.update(PinholeUpdate(lease_id, ttl=min(ttl, LONGEST_CONVERSATION)))
            except PinholeRefused:
                self._open.discard(lease_id)  # its time was over, or there is a new broker

    def release(self, lease_id: str) -> None:
        """Close the port: let no host in any more."""
        if lease_id in self._open:
            self._open.remove(lease_id)
            self._broker.close(lease_id)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._open

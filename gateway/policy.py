"""Who may reach what: pure decisions. The only room that permits or denies a client's request."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from alg.address import Address
from gateway.config import Network
from gateway.model import ConnectRequest


class Decision(msgspec.Struct, frozen=True):
    """`rule` names what decided ("default", "client", "loopback", ...), for the log."""

    permit: bool
    rule: str


class Policy:
    """The rules of one configuration. Without any rule: inside clients may reach the outside; without inside networks
    loopback clients may. A deployment's own addresses are no destination."""

    def __init__(self, inside: Sequence[Network]) -> None:
        self._inside = tuple(inside)

    def decide_client(self, request: ConnectRequest) -> Decision:
        """Whether this client may ask at all; asked before a name is resolved, so that strangers cause no lookups."""
        client = _plain(request.client.ip)
        permit = self._is_inside(client) if self._inside else client.is_loopback
        return Decision(permit, "default" if permit else "client")

    def decide(self, request: ConnectRequest, address: Address, *, own: bool) -> Decision:
        """Whether `request` may be carried out at `address`: the one that its name resolved to, or was given.

        `own`: whether it is an address of this host. The caller dials exactly the address that was decided on.
        """
        decision = self.decide_client(request)
        if not decision.permit:
            return decision
        target = _plain(address)
        for rule, hit in (
            ("loopback", target.is_loopback),
            ("unspecified", target.is_unspecified or target in _THIS_NETWORK),
            ("link-local", target.is_link_local),
            ("multicast", target.is_multicast or target == _BROADCAST),
            ("own", own),
            ("inside", self._is_inside(target)),
        ):
            if hit:
                return Decision(False, rule)
        return decision

    def permits_any_peer(self, request: ConnectRequest) -> bool:
        """Whether a BIND may be answered by a connection of anybody (address 0, RFC 1928 section 4). Only a rule that
        says so can permit that; without one, no."""
        return False

    def _is_inside(self, address: Address) -> bool:
        return any(address in network for network in self._inside)


_THIS_NETWORK = ipaddress.ip_network(
    "0.0.0.0/8"
)  # RFC 1122 3.2.1.3: never a destination, and Linux takes it for itself
_BROADCAST = ipaddress.ip_address("255.255.255.255")


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped IPv6 address stands for, or the address itself."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

"""The limits of the broker's pinholes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.broker.forwards import Forward
from gateway.broker.netfilter import Meter
from gateway.lease.quotas import QUOTAS, SUGGESTIBLE, LeaseLimits
from gateway.model.requests import Network


class BrokerLimits(NamedTuple):
    """The broker's limits. `inside`: the networks of clients. `ports`, `read_ports`, `per_client`, `rate`: see
    LeaseLimits. `meter`: how fast datagrams for modules may come.

    `restore`: whether the table is restored, with what is open, when another program has removed it. `signalling`: UDP
    ports of modules, whose connections are kept out of flowtables. `kinds`: the kinds of pinholes that the modules of
    each process declare, by its slot. `mapping_ports`, `mappings`: see LeaseLimits. `reserved`: ports that a mapping
    never gets. `forwards`: what the operator forwards. `interfaces`: those of the inside.
    """

    inside: Sequence[Network]
    ports: tuple[int, int]
    read_ports: tuple[int, int] | None
    per_client: int
    rate: float
    restore: bool = True
    meter: Meter = Meter()
    signalling: tuple[int, ...] = ()
    kinds: Mapping[int, frozenset[str]] = {}
    mapping_ports: tuple[int, int] = SUGGESTIBLE
    mappings: int = QUOTAS["mappings"]
    reserved: frozenset[int] = frozenset()
    forwards: tuple[Forward, ...] = ()
    interfaces: tuple[str, ...] = ()

    def of_table(self) -> LeaseLimits:
        """Return the limits of the lease table."""
        return LeaseLimits(
            ports=self.ports,
            read_ports=self.read_ports,
            per_client=self.per_client,
            rate=self.rate,
            mapping_ports=self.mapping_ports,
            mappings=self.mappings,
        )

    def has_inside(self, host: str) -> bool:
        """Whether an address may belong to a client."""
        return any(ipaddress.ip_address(host) in network for network in self.inside)

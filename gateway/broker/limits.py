"""What a configuration allows the broker's pinholes to be."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from gateway.broker.netfilter import Meter
from gateway.config.schema import Config
from gateway.model.requests import Network


class TableLimits(TypedDict):
    """As the lease table wants them."""

    ports: tuple[int, int]
    read_ports: tuple[int, int] | None
    per_client: int
    rate: float


class Limits(NamedTuple):
    """`inside`: who may be a client. `ports`, `read_ports`, `per_client`, `rate`: see LeaseTable. `meter`: how fast
    datagrams for modules may come.

    `restore`: whether the table is put back with what is open when somebody else has removed it. `signalling`: UDP
    ports of modules, whose connections are kept out of flowtables.
    """

    inside: Sequence[Network]
    ports: tuple[int, int]
    read_ports: tuple[int, int] | None
    per_client: int
    rate: float
    restore: bool = True
    meter: Meter = Meter()
    signalling: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The limits of a configuration."""
        pinhole = config.pinhole
        meter = Meter(
            config.module_ports("udp") if config.packets_wanted else (),
            config.read_ports,
            tuple(str(network) for network in config.inside_networks),
            config.transparent.datagram_rate,
        )
        return cls(
            inside=config.inside_networks,
            ports=config.pinhole_ports,
            read_ports=config.read_ports,
            per_client=pinhole.per_client,
            rate=pinhole.rate,
            restore=config.rules.restore,
            meter=meter,
            signalling=config.module_ports("udp") if config.packets_wanted else (),
        )

    def of_table(self) -> TableLimits:
        """Those that are the lease table's."""
        return {
            "ports": self.ports, "read_ports": self.read_ports, "per_client": self.per_client, "rate": self.rate
        }  # fmt: skip

    def has_inside(self, host: str) -> bool:
        """Whether an address may be a client's."""
        return any(ipaddress.ip_address(host) in network for network in self.inside)

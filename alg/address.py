"""Endpoints: an IP address and a port."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address:
    """Parse an IP address. Results are remembered, because the same few addresses come with every connection. Raises
    ValueError for a name."""
    return ipaddress.ip_address(text)


class Endpoint(NamedTuple):
    """An IP address and a port (0 to 65535). `host` is the canonical text of an address, never a name.

    It is a tuple because it is hashed and compared several times for each message, and a dataclass does that in Python
    code.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str | Address, port: int) -> Endpoint:
        """Make an endpoint from any valid spelling of an address. Raises ValueError for a name, a bad address or a bad
        port."""
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
        return cls(str(ipaddress.ip_address(host)), port)

    @property
    def ip(self) -> Address:
        return parse_ip(self.host)

    @property
    def version(self) -> int:
        """The IP version: 4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=4096)
def canonical(host: str | Address) -> Address:
    """Return the canonical text of an address; for an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) that of the IPv4
    address. Raises ValueError for a name."""
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


_PRIVATE = [
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]


def is_private(address: Address) -> bool:
    """Whether an address belongs to a private network, or to that of a provider's NAT (RFC 1918, 4193, 6598)."""
    return any(address.version == network.version and address in network for network in _PRIVATE)

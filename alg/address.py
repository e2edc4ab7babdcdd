"""Endpoints, and the strict grammars in which protocols write them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An IP address and a port (0 to 65535). `host` is the canonical text of an address, never a name."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str | Address, port: int) -> Endpoint:
        """Make an endpoint of any valid spelling. ValueError for a name, a bad address or a bad port."""
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
        return cls(str(ipaddress.ip_address(host)), port)

    @property
    def ip(self) -> Address:
        return ipaddress.ip_address(self.host)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

"""The keys of `[alg.ftp]` that only FTP has. `description` is what docs/reference/ says about each."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FtpOptions:
    """Options of the FTP module. Raises ValueError, beginning with the key, for prefixes that are no IPv6 networks."""

    pasv_address: Literal["keep", "peer"] = field(
        default="keep",
        metadata={
            "description": 'What to do with a 227 reply that names another host than the server. "keep": relay it, and '
            'open nothing; "peer": write the server\'s own address into it.'
        },
    )
    convert: Literal["off", "active", "passive"] = field(
        default="off",
        metadata={
            "description": 'Conversion between the modes. "active": PORT and EPRT of clients become PASV and EPSV, for '
            'servers that are passive only; "passive": PASV of clients becomes PORT, for servers that '
            "are active only."
        },
    )
    nat64: tuple[str, ...] = field(
        default=("64:ff9b::/96",),
        metadata={
            "description": "Prefixes of NAT64. Servers at addresses of these prefixes are IPv4 servers: EPRT becomes "
            "EPSV, and EPSV becomes PASV where the server does not know EPSV (RFC 6384)."
        },
    )

    def __post_init__(self) -> None:
        for prefix in self.nat64:
            try:
                ipaddress.IPv6Network(prefix)
            except ValueError as error:
                raise ValueError(f"nat64: {error}") from None

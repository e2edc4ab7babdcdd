"""The keys of `[alg.ftp]` that are FTP's own; `description` is what the reference says of each."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FtpOptions:
    """What to do where FTP leaves a choice."""

    pasv_address: Literal["keep", "peer"] = field(
        default="keep",
        metadata={
            "description": 'A 227 that names another host than the server. "keep": relay it, open nothing; "peer": '
            "write the server's own address."
        },
    )
    convert: Literal["off", "active", "passive"] = field(
        default="off",
        metadata={
            "description": '"active": PORT and EPRT of clients become PASV and EPSV to servers that are passive only; '
            '"passive": PASV of clients becomes PORT.'
        },
    )
    nat64: tuple[str, ...] = field(
        default=("64:ff9b::/96",),
        metadata={
            "description": "Prefixes of NAT64: servers there are of IPv4. EPSV becomes PASV where they do not know it, "
            "and EPRT becomes EPSV (RFC 6384)."
        },
    )

    def __post_init__(self) -> None:
        for prefix in self.nat64:
            try:
                ipaddress.IPv6Network(prefix)
            except ValueError as error:
                raise ValueError(f"nat64: {error}") from None

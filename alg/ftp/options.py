"""The keys of `[alg.ftp]` that are FTP's own; `description` is what the reference says of each."""

from __future__ import annotations

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

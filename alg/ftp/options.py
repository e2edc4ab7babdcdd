"""The keys of `[alg.ftp]` that are FTP's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FtpOptions:
    """`pasv_address`: what to do with a 227 reply that names another address than the server's own. "keep": relay it as
    it is, nothing is opened; "peer": write the server's own address into it, and open that.

    `convert`: between the modes. "active": PORT and EPRT of a client become PASV and EPSV to the server; "passive":
    PASV of a client becomes PORT."""

    pasv_address: Literal["keep", "peer"] = "keep"
    convert: Literal["off", "active", "passive"] = "off"

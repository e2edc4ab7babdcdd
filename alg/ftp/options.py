"""The keys of `[alg.ftp]` that are FTP's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FtpOptions:
    """`pasv_address`: what to do with a 227 reply that names another address than the server's own. "keep": relay it as
    it is, nothing is opened; "peer": write the server's own address into it, and open that."""

    pasv_address: Literal["keep", "peer"] = "keep"

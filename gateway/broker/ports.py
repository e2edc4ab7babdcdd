"""Whether a public port is free on this host."""

from __future__ import annotations

import _socket
import errno
import socket

from gateway.model.errors import PinholeRefused
from gateway.model.requests import Transport

_SOCKET_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def can_bind(transport: Transport, host: str, port: int, foreign: bool = False) -> bool:
    """Whether no program on this host uses this port. If the address is not one of this host's, raises PinholeRefused
    "public", or with `foreign` (the NAT translates to it) returns True. Raises PinholeRefused "full" if this host has
    no descriptor left."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        probe = _socket.socket(family, _SOCKET_KINDS[transport])  # asked thousands of times a second
    except OSError as error:
        raise PinholeRefused("full", f"no socket to try a port with: {error.strerror}") from None
    try:
        probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            if foreign:
                return True
            raise PinholeRefused("public", f"{host} is not an address of this host") from None
        return False
    finally:
        probe.close()
    return True

"""The wire format of the GSSAPI method of SOCKS 5 (RFC 1961), without a socket and without a security context."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from alg.socks.socks5 import SocksError

VERSION = 1
MAX_TOKEN = 65535
HEADER = 4
ABORT = bytes((VERSION, 0xFF))
"""The server's refusal (section 3.8)."""


class MessageType(IntEnum):
    AUTHENTICATION = 1
    PROTECTION_LEVEL = 2
    ENCAPSULATION = 3


class Level(IntEnum):
    """Protection of messages (section 4.3). NONE is not in the RFC, but is what curl and others ask for."""

    NONE = 0
    INTEGRITY = 1
    CONFIDENTIALITY = 2
    SELECTIVE = 3


LEVELS: dict[str, Level] = {
    "none": Level.NONE,
    "integrity": Level.INTEGRITY,
    "confidentiality": Level.CONFIDENTIALITY,
}


def parse_message(buffer: bytes | bytearray, wanted: MessageType) -> tuple[bytes, int] | None:
    """Read VER MTYP LEN TOKEN, and return the token; None: more bytes are needed. Raises SocksError for another version
    or type, or an abort."""
    if buffer and buffer[0] != VERSION:
        raise SocksError(None, f"version {buffer[0]} of the GSSAPI sub-negotiation where 1 was expected")
    if len(buffer) >= 2 and buffer[1] != wanted:
        raise SocksError(None, f"GSSAPI message of type {buffer[1]} where {wanted} was expected")
    if len(buffer) < HEADER:
        return None
    end = HEADER + int.from_bytes(buffer[2:HEADER], "big")
    if len(buffer) < end:
        return None
    return bytes(buffer[HEADER:end]), end


def encode_message(kind: MessageType, token: bytes) -> bytes:
    """Encode VER MTYP LEN TOKEN. Raises ValueError for a token that is too long."""
    if len(token) > MAX_TOKEN:
        raise ValueError(f"a token of {len(token)} bytes does not fit into a message")
    return bytes((VERSION, kind)) + len(token).to_bytes(2, "big") + token


def choose_level(offered: int, allowed: Sequence[Level]) -> Level | None:
    """Return the level with which to answer the client's (section 4.2), from `allowed`, in the server's order; None:
    refuse the client.

    A client that asks for no protection would not understand any other answer. One that asks for protection, or leaves
    the choice, gets what it asked for or the first allowed level, after which it may leave. It never gets none.
    """
    if offered == Level.NONE:
        return Level.NONE if Level.NONE in allowed else None
    if offered not in (Level.INTEGRITY, Level.CONFIDENTIALITY, Level.SELECTIVE):
        return None
    if offered in allowed:
        return Level(offered)
    return next((level for level in allowed if level is not Level.NONE), None)


class Mechanism(Protocol):
    """A client's security context, such as that of python-gssapi or of a test. Each method raises ValueError for data
    that is not the proxy's."""

    @property
    def complete(self) -> bool:
        """Whether the context is established."""
        ...

    def step(self, token: bytes | None) -> bytes:
        """Handle the proxy's token (None: begin), and return the next one for it, or nothing."""
        ...

    def wrap(self, data: bytes, level: Level) -> bytes:
        """Return a token with `data` in it, protected by `level`."""
        ...

    def unwrap(self, token: bytes, level: Level) -> bytes:
        """Return the contents of a token that must be protected by `level`."""
        ...

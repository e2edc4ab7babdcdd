"""The wire format of username and password (RFC 1929), without a socket. A message has at most 513 bytes."""

from __future__ import annotations

from typing import NamedTuple

from alg.socks.socks5 import SocksError

VERSION = 1
MAX_MESSAGE = 513
SUCCESS = bytes((VERSION, 0))
FAILURE = bytes((VERSION, 1))


class Credentials(NamedTuple):
    """The credentials of a client. The password is in no repr, so that no log or traceback can contain it."""

    user: bytes
    password: bytes

    def __rich_repr__(self) -> list[tuple[str, bytes]]:
        return [("user", self.user)]

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def encode_credentials(user: bytes, password: bytes) -> bytes:
    """Encode VER ULEN UNAME PLEN PASSWD (section 2). Raises ValueError for a name or password longer than 255 bytes."""
    if len(user) > 255 or len(password) > 255:
        raise ValueError("a user's name and a password have at most 255 bytes")
    return bytes((VERSION, len(user))) + user + bytes((len(password),)) + password


def parse_credentials(buffer: bytes | bytearray) -> tuple[Credentials, int] | None:
    """Read VER ULEN UNAME PLEN PASSWD (section 2); None: more bytes are needed. Raises SocksError for another version.

    The RFC has names and passwords of 1 to 255 bytes. Empty ones are read too, and belong to no user.
    """
    if not buffer:
        return None
    if buffer[0] != VERSION:
        raise SocksError(None, f"version {buffer[0]} of the password sub-negotiation where 1 was expected")
    if len(buffer) < 2:
        return None
    end = 2 + buffer[1]
    if len(buffer) <= end:
        return None
    last = end + 1 + buffer[end]
    if len(buffer) < last:
        return None
    return Credentials(bytes(buffer[2:end]), bytes(buffer[end + 1 : last])), last

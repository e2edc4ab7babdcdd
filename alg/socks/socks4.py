"""The wire format of SOCKS versions 4 and 4a, without a socket.

There is no RFC: "SOCKS: A protocol for TCP proxy across firewalls" (Y. Lee) and its 4a supplement. `parse_request`
works like the parsers of `socks5`. A request has at most 520 bytes.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address
from typing import NamedTuple

from alg.address import Endpoint
from alg.socks.socks5 import SocksError, decode_name

VERSION = 4
MAX_USERID = 255
MAX_NAME = 255
MAX_MESSAGE = 8 + MAX_USERID + 1 + MAX_NAME + 1


class Command(IntEnum):
    CONNECT = 1
    BIND = 2
    RESOLVE = 0xF0  # Tor's, as in socks5


class Reply(IntEnum):
    GRANTED = 90
    REJECTED = 91
    NO_IDENTD = 92
    USERID_DIFFERS = 93


class Request(NamedTuple):
    """A request. `host` is the text of an IPv4 address, or (4a) what the client named, in its spelling. `userid` is not
    proved."""

    command: Command
    host: str
    port: int
    userid: bytes


def parse_request(buffer: bytes | bytearray) -> tuple[Request, int] | None:
    """Read VN CD DSTPORT DSTIP USERID NUL, and for 0.0.0.x (4a) a name and NUL.

    Raises SocksError for another version, an unknown command, a user id or name beyond 255 bytes, a name that cannot be
    one.
    """
    if not buffer:
        return None
    if buffer[0] != VERSION:
        raise SocksError(None, f"SOCKS version {buffer[0]} where 4 was expected")
    if len(buffer) < 8:
        return None
    user = _until_nul(buffer, 8, MAX_USERID, "user id")
    if user is None:
        return None
    userid, end = user
    name: bytes | None = None
    if buffer[4:7] == b"\0\0\0" and buffer[7]:
        named = _until_nul(buffer, end, MAX_NAME, "host name")
        if named is None:
            return None
        name, end = named
    try:
        command = Command(buffer[1])
    except ValueError:
        raise SocksError(Reply.REJECTED, f"command {buffer[1]} is unknown") from None
    host = str(IPv4Address(bytes(buffer[4:8]))) if name is None else decode_name(name, Reply.REJECTED)
    return Request(command, host, int.from_bytes(buffer[2:4], "big"), userid), end


def encode_reply(reply: Reply, bound: Endpoint | None = None) -> bytes:
    """Encode VN (0) CD DSTPORT DSTIP. `bound` is the bound endpoint; without one, or with an IPv6 one, 0.0.0.0:0 is
    sent."""
    if bound is None or bound.version == 6:
        return bytes((0, reply)) + bytes(6)
    return bytes((0, reply)) + bound.port.to_bytes(2, "big") + bound.ip.packed


def _until_nul(buffer: bytes | bytearray, start: int, limit: int, what: str) -> tuple[bytes, int] | None:
    """Return the bytes from `start` to a NUL, and the offset behind it; None if there is no NUL yet."""
    end = buffer.find(b"\0", start, start + limit + 1)
    if end >= 0:
        return bytes(buffer[start:end]), end + 1
    if len(buffer) > start + limit:
        raise SocksError(Reply.REJECTED, f"the {what} is longer than {limit} bytes")
    return None

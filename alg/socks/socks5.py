"""The wire format of SOCKS version 5 (RFC 1928), without a socket.

Each `parse_*` looks at what has come so far and returns None (more bytes are needed), or what it read and how many
bytes that took. The bytes behind those are for the server, and are not looked at. A message has at most 262 bytes, so a
caller that parses after each read and stops at a result never holds more than that and one read.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from alg.address import Endpoint, canonical

VERSION = 5
MAX_MESSAGE = 262  # a request with a name of 255 bytes


class Method(IntEnum):
    """Authentication methods (RFC 1928, section 3)."""

    NONE = 0x00
    GSSAPI = 0x01
    PASSWORD = 0x02
    NO_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """Commands (RFC 1928, section 4), and the two that Tor added to ask for names and addresses."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1


class Reply(IntEnum):
    """Reply codes (RFC 1928, section 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class AddressType(IntEnum):
    """Address types (RFC 1928, section 5)."""

    IPV4 = 0x01
    NAME = 0x03
    IPV6 = 0x04


class SocksError(Exception):
    """The client does not follow the protocol. `reply` is the code to answer with; None: close without an answer."""

    def __init__(self, reply: int | None, message: str) -> None:
        super().__init__(message)
        self.reply = reply


class Greeting(NamedTuple):
    """The methods that the client offers, in its order. May be empty, and contain numbers that `Method` does not
    have."""

    methods: tuple[int, ...]


class Request(NamedTuple):
    """A request. `host` is the canonical text of an address, or what the client named, in its spelling."""

    command: Command
    host: str
    port: int


def parse_greeting(buffer: bytes | bytearray) -> tuple[Greeting, int] | None:
    """Read VER NMETHODS METHODS (RFC 1928, section 3). Raises SocksError for another version."""
    if not buffer:
        return None
    _check_version(buffer)
    if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
        return None
    end = 2 + buffer[1]
    return Greeting(tuple(buffer[2:end])), end


def encode_method(method: Method) -> bytes:
    """Encode the server's choice of a method (RFC 1928, section 3)."""
    return bytes((VERSION, method))


def parse_request(buffer: bytes | bytearray) -> tuple[Request, int] | None:
    """Read VER CMD RSV ATYP DST.ADDR DST.PORT (RFC 1928, section 4).

    Raises SocksError for another version, an unknown address type or command, or a name that cannot be one. Errors that
    can be answered are raised when the whole request has come, because an earlier answer may be lost in a reset.
    """
    if not buffer:
        return None
    _check_version(buffer)
    if len(buffer) < 5:
        return None
    match buffer[3]:
        case AddressType.IPV4:
            start, end = 4, 8
        case AddressType.IPV6:
            start, end = 4, 20
        case AddressType.NAME:
            start, end = 5, 5 + buffer[4]
        case unknown:
            raise SocksError(Reply.ADDRESS_TYPE_NOT_SUPPORTED, f"address type {unknown} is unknown")
    if len(buffer) < end + 2:
        return None
    try:
        command = Command(buffer[1])
    except ValueError:
        raise SocksError(Reply.COMMAND_NOT_SUPPORTED, f"command {buffer[1]} is unknown") from None
    address = bytes(buffer[start:end])
    match buffer[3]:
        case AddressType.IPV4:
            host = str(IPv4Address(address))
        case AddressType.IPV6:
            host = str(canonical(IPv6Address(address)))
        case _:
            host = decode_counted_name(address)
    return Request(command, host, int.from_bytes(buffer[end : end + 2], "big")), end + 2


def encode_reply(reply: Reply, bound: Endpoint | str | None = None) -> bytes:
    """Encode VER REP RSV ATYP BND.ADDR BND.PORT (RFC 1928, section 6).

    `bound`: an endpoint; None for 0.0.0.0:0, as in failures; a name to answer RESOLVE_PTR. Raises ValueError for a name
    that is empty or longer than 255 bytes.
    """
    if isinstance(bound, str):
        name = bound.encode()
        if not 1 <= len(name) <= 255:
            raise ValueError(f"a name of {len(name)} bytes does not fit into a reply")
        return bytes((VERSION, reply, 0, AddressType.NAME, len(name))) + name + bytes(2)
    if bound is None:
        return bytes((VERSION, reply, 0, AddressType.IPV4)) + bytes(6)
    kind = AddressType.IPV6 if bound.version == 6 else AddressType.IPV4
    return bytes((VERSION, reply, 0, kind)) + bound.ip.packed + bound.port.to_bytes(2, "big")


def encode_address(host: str) -> bytes:
    """Encode ATYP and an address (section 5): that of the text of an IP address, otherwise the name itself. Raises
    ValueError for a name that is empty or longer than 255 bytes."""
    try:
        address = ip_address(host)
    except ValueError:
        name = host.encode() if host.isascii() else host.encode("idna")
        if not 1 <= len(name) <= 255:
            raise ValueError(f"a host name has 1 to 255 bytes, not {len(name)}") from None
        return bytes((AddressType.NAME, len(name))) + name
    return bytes((AddressType.IPV6 if address.version == 6 else AddressType.IPV4,)) + address.packed


def decode_name(raw: bytes, reply: int) -> str:
    """Decode a host name of a message; its spelling stays. Raises SocksError(`reply`) if it cannot be one.

    The resolver decides what a name may be; this keeps out what could confuse a log, a rule or a C library.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise SocksError(reply, "the host name is not UTF-8") from None
    if not name:
        raise SocksError(reply, "the host name is empty")
    if not name.isprintable() or any(character.isspace() for character in name):
        raise SocksError(reply, "the host name has a blank or a control character in it")
    return name


def decode_counted_name(raw: bytes) -> str:
    """Decode a host name behind its length. A NUL at its end is no part of it: some clients count it in. Raises
    SocksError."""
    return decode_name(raw.removesuffix(b"\0"), Reply.GENERAL_FAILURE)


def _check_version(buffer: bytes | bytearray) -> None:
    if buffer[0] != VERSION:
        raise SocksError(None, f"SOCKS version {buffer[0]} where 5 was expected")

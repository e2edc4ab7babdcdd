"""The messages of PCP (RFC 6887), as a server reads and writes them.

A request is 24 bytes of header, what its opcode adds, and options; at most 1100 bytes, and a multiple of 4. IPv4
addresses are written as IPv4-mapped IPv6 addresses (::ffff:192.0.2.1).
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

VERSION = 2
LONGEST = 1100
"""Bytes of a message (section 7)."""

SHORT, LONG = 30, 1800
"""Lifetimes of errors, in seconds: those that may be over soon, and those that will not (section 7.4)."""

TCP, UDP = 6, 17
MOST_FILTERS = 8

REQUEST = struct.Struct("!BBHI16s")  # version, R and opcode, reserved, lifetime, client
RESPONSE = struct.Struct("!BBBBII12s")  # version, R and opcode, reserved, result, lifetime, epoch, reserved
MAP_BODY = struct.Struct("!12sB3sHH16s")  # nonce, protocol, reserved, internal port, external port, external address
_PEER = struct.Struct("!12sB3sHH16sH2s16s")  # as MAP, and the remote peer's port, reserved, its address
_OPTION = struct.Struct("!BBH")  # code, reserved, length
_FILTER = struct.Struct("!BBH16s")  # reserved, prefix length, remote port, remote address
_R = 0x80
_ANY4, _ANY6 = "0.0.0.0", "::"
_MAPPED = 96  # bits before an IPv4 address in its IPv6 form

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Opcode(IntEnum):
    """Opcodes of PCP (RFC 6887, section 19.2)."""

    ANNOUNCE = 0
    MAP = 1
    PEER = 2


class Option(IntEnum):
    """Section 19.4. Codes below 128 have to be understood by the server (section 7.3)."""

    THIRD_PARTY = 1
    PREFER_FAILURE = 2
    FILTER = 3


class Result(IntEnum):
    """Result codes of PCP (RFC 6887, section 7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


_SIZES: dict[int, int] = {Opcode.ANNOUNCE: 0, Opcode.MAP: MAP_BODY.size, Opcode.PEER: _PEER.size}
LIFETIMES = {
    Result.NOT_AUTHORIZED: LONG,
    Result.NETWORK_FAILURE: SHORT,
    Result.NO_RESOURCES: SHORT,
    Result.USER_EX_QUOTA: SHORT,
    Result.CANNOT_PROVIDE_EXTERNAL: SHORT,
}
"""How long each error lasts, where it is not LONG (section 7.4)."""


class Wrong(Exception):
    """A request that cannot be carried out, whatever the state of the server. `result` says why."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.name)
        self.result = result


@dataclass(frozen=True, slots=True)
class Announce:
    """A request that asks for the epoch only (section 14.1)."""

    options: bytes = b""


@dataclass(frozen=True, slots=True)
class Filters:
    """The FILTER options of a request: whether existing filters are deleted, and the filters that are added, as texts
    of prefixes."""

    forget: bool = False
    add: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Map:
    """A MAP request (section 11.1). `protocol`: of IP, 0: all. `suggested` None: no address is suggested; `port` and
    `suggested_port` 0: none. `options`: those that the answer repeats. `filters` None: there is no FILTER."""

    nonce: bytes
    lifetime: int
    protocol: int
    port: int
    suggested_port: int
    suggested: Address | None
    prefer_failure: bool = False
    filters: Filters | None = None
    options: bytes = b""


@dataclass(frozen=True, slots=True)
class Peer:
    """A PEER request (section 12.1): what `port` sends to `remote` at `remote_port` is to leave from the external port,
    and what comes from there is to come in. The other fields are as in Map."""

    nonce: bytes
    lifetime: int
    protocol: int
    port: int
    suggested_port: int
    suggested: Address | None
    remote: Address
    remote_port: int


Request = Announce | Map | Peer


def is_request(data: bytes) -> bool:
    """Whether a datagram is a message that is to be answered: responses and single bytes are dropped (section 8.2)."""
    return len(data) >= 2 and not data[1] & _R


def parse(data: bytes, source: Address) -> Request:
    """Read a request of the client at `source`. Raises Wrong; its `result` is an argument of `error`."""
    if data[0] != VERSION:
        raise Wrong(Result.UNSUPP_VERSION)
    if len(data) < REQUEST.size or len(data) > LONGEST or len(data) % 4:
        raise Wrong(Result.MALFORMED_REQUEST)
    _, opcode, _, lifetime, client = REQUEST.unpack_from(data)
    if opcode not in _SIZES:
        raise Wrong(Result.UNSUPP_OPCODE)
    at = REQUEST.size + _SIZES[opcode]
    if len(data) < at:
        raise Wrong(Result.MALFORMED_REQUEST)
    if _unmapped(client) != source:
        raise Wrong(Result.ADDRESS_MISMATCH)
    options = _options(data, at)
    if opcode == Opcode.ANNOUNCE:
        _understood(options, source, ())
        return Announce()
    if opcode == Opcode.PEER:
        _understood(options, source, ())
        return _peer(data, lifetime, source)
    return _map(data, lifetime, options, source)


def _peer(data: bytes, lifetime: int, source: Address) -> Peer:
    nonce, protocol, _, port, suggested_port, wanted, remote_port, _, packed = _PEER.unpack_from(data, REQUEST.size)
    remote = _unmapped(packed)
    if not (protocol and port and remote_port) or remote.version != source.version:
        raise Wrong(Result.MALFORMED_REQUEST)
    if remote.is_unspecified or remote.is_multicast or remote.is_loopback:
        raise Wrong(Result.MALFORMED_REQUEST)
    if protocol not in (TCP, UDP):
        raise Wrong(Result.UNSUPP_PROTOCOL)
    suggested = _unmapped(wanted)
    anywhere = str(suggested) in (_ANY4, _ANY6)
    return Peer(nonce, lifetime, protocol, port, suggested_port, None if anywhere else suggested, remote, remote_port)


def _map(data: bytes, lifetime: int, options: list[tuple[int, bytes]], source: Address) -> Map:
    _understood(options, source, (Option.PREFER_FAILURE, Option.FILTER))
    nonce, protocol, _, port, suggested_port, wanted = MAP_BODY.unpack_from(data, REQUEST.size)
    prefer_failure = sum(code == Option.PREFER_FAILURE for code, _ in options)
    if prefer_failure > 1 or any(code == Option.PREFER_FAILURE and value for code, value in options):
        raise Wrong(Result.MALFORMED_OPTION)
    filters = [value for code, value in options if code == Option.FILTER]
    if lifetime == 0:
        if filters:  # section 13.3
            raise Wrong(Result.MALFORMED_OPTION)
        if prefer_failure:  # section 13.2
            raise Wrong(Result.MALFORMED_REQUEST)
        if protocol == 0 and port:  # section 15: all protocols have all ports
            raise Wrong(Result.MALFORMED_REQUEST)
    elif protocol in (TCP, UDP) and not port:  # section 11.1: all ports are for deletions
        raise Wrong(Result.MALFORMED_REQUEST)
    if protocol not in ((0, TCP, UDP) if lifetime == 0 else (TCP, UDP)):
        raise Wrong(Result.UNSUPP_PROTOCOL)
    suggested = _unmapped(wanted)
    return Map(
        nonce,
        lifetime,
        protocol,
        port,
        suggested_port,
        None if str(suggested) in (_ANY4, _ANY6) else suggested,
        bool(prefer_failure),
        _filters(filters, source) if filters else None,
        b"".join(_written(code, value) for code, value in options if code < 128),
    )


def _understood(options: list[tuple[int, bytes]], source: Address, allowed: tuple[int, ...]) -> None:
    """Raise Wrong for an option that has to be understood and is not."""
    for code, value in options:
        if code == Option.THIRD_PARTY:
            if len(value) != 16:
                raise Wrong(Result.MALFORMED_OPTION)
            # Of oneself it is malformed (section 13.1), of another host it is not done.
            raise Wrong(Result.MALFORMED_REQUEST if _unmapped(value) == source else Result.UNSUPP_OPTION)
        if code < 128 and code not in allowed:
            raise Wrong(Result.UNSUPP_OPTION)


def _options(data: bytes, at: int) -> list[tuple[int, bytes]]:
    """Return the options from an offset on, as codes and values."""
    found = []
    while at < len(data):
        if at + _OPTION.size > len(data):
            raise Wrong(Result.MALFORMED_OPTION)
        code, _, length = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if at + length > len(data):
            raise Wrong(Result.MALFORMED_OPTION)
        found.append((code, data[at : at + length]))
        at += length + -length % 4
    return found


def _written(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, 0, len(value)) + value + bytes(-len(value) % 4)


def _filters(values: list[bytes], source: Address) -> Filters:
    """Read FILTER options (section 13.3), in their order."""
    forget, add = False, dict[str, None]()
    for value in values:
        if len(value) != _FILTER.size:
            raise Wrong(Result.MALFORMED_OPTION)
        _, length, port, remote = _FILTER.unpack(value)
        if length == 0:
            forget = True
            add.clear()
            continue
        if length > 128:
            raise Wrong(Result.MALFORMED_OPTION)
        if port:  # the kernel's table of filters has no ports
            raise Wrong(Result.EXCESSIVE_REMOTE_PEERS)
        address = _unmapped(remote)
        if address.version == 4:
            length -= _MAPPED
        if address.version != source.version or length < 0:
            raise Wrong(Result.MALFORMED_OPTION)
        if not length:  # of all addresses of the family: nobody is left out
            forget = True
            add.clear()
            continue
        add[str(ipaddress.ip_network((address, length), strict=False))] = None
    if len(add) > MOST_FILTERS:
        raise Wrong(Result.EXCESSIVE_REMOTE_PEERS)
    return Filters(forget, tuple(add))


# --- answers --------------------------------------------------------------------------------------------------------


def announced(epoch: int) -> bytes:
    """The answer to ANNOUNCE, which is also what is announced unasked (section 14.1)."""
    return _header(Opcode.ANNOUNCE, Result.SUCCESS, 0, epoch)


def mapped(request: Map, lifetime: int, port: int, address: Address, epoch: int) -> bytes:
    """The answer to a MAP request that was carried out: the external port and address (zeros after a deletion), the
    granted lifetime, and the options again."""
    body = MAP_BODY.pack(request.nonce, request.protocol, bytes(3), request.port, port, written_address(address))
    return _header(Opcode.MAP, Result.SUCCESS, lifetime, epoch) + body + request.options


def peered(request: Peer, lifetime: int, port: int, address: Address, epoch: int) -> bytes:
    """The answer to a PEER request that was carried out (section 12.2), as `mapped`."""
    body = _PEER.pack(
        request.nonce, request.protocol, bytes(3), request.port, port, written_address(address),
        request.remote_port, bytes(2), written_address(request.remote),
    )  # fmt: skip
    return _header(Opcode.PEER, Result.SUCCESS, lifetime, epoch) + body


def error(data: bytes, result: Result, lifetime: int, epoch: int) -> bytes:
    """The answer to a request that fails: its own bytes behind another header, as many as may be, padded (8.2)."""
    if result == Result.UNSUPP_VERSION:
        return _header(data[1], result, lifetime, epoch)
    body = data[REQUEST.size : LONGEST]
    return _header(data[1], result, lifetime, epoch) + body + bytes(-len(body) % 4)


def lifetime_of(result: Result) -> int:
    """The seconds for which an error lasts."""
    return LIFETIMES.get(result, LONG)


def _header(opcode: int, result: Result, lifetime: int, epoch: int) -> bytes:
    return RESPONSE.pack(VERSION, _R | (opcode & 0x7F), 0, result, lifetime, epoch & 0xFFFFFFFF, bytes(12))


def _unmapped(data: bytes) -> Address:
    address = ipaddress.IPv6Address(data)
    return address.ipv4_mapped or address


def written_address(address: Address) -> bytes:
    """An address as a message has it: 16 bytes (section 5)."""
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed

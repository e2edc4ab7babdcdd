"""The messages of NAT-PMP (RFC 6886), as a server reads and writes them. They share PCP's port, with version 0."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

VERSION = 0
_MAP = struct.Struct("!BBHHHI")  # version, opcode, reserved, inside port, public port, lifetime
ANSWER = struct.Struct("!BBHI")  # version, opcode, result, epoch
_R = 0x80

Transport = Literal["tcp", "udp"]
_TRANSPORTS: dict[int, Transport] = {1: "udp", 2: "tcp"}


class Result(IntEnum):
    """Result codes of NAT-PMP (RFC 6886, section 3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class AskAddress:
    """A request for the public address (section 3.2)."""


@dataclass(frozen=True, slots=True)
class Map:
    """A request for a mapping (section 3.3). `public_port` 0: any. `lifetime` 0: the mapping is to end; with `port` 0
    all of this transport (section 3.4)."""

    transport: Transport
    port: int
    public_port: int
    lifetime: int

    @property
    def opcode(self) -> int:
        return 1 if self.transport == "udp" else 2


class Wrong(Exception):
    """A request that cannot be carried out. `result` says why."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.name)
        self.result = result


def is_request(data: bytes) -> bool:
    """Whether a datagram is to be answered at all: answers, and what is too short for its opcode, are dropped."""
    if len(data) < 2 or data[1] & _R:
        return False
    return data[0] != VERSION or data[1] not in _TRANSPORTS or len(data) >= _MAP.size


def parse(data: bytes) -> AskAddress | Map:
    """Read a request for which `is_request` is true. Bytes beyond its length are accepted, because clients pad. Raises
    Wrong."""
    if data[0] != VERSION:
        raise Wrong(Result.UNSUPPORTED_VERSION)
    if data[1] == 0:
        return AskAddress()
    transport = _TRANSPORTS.get(data[1])
    if transport is None:
        raise Wrong(Result.UNSUPPORTED_OPCODE)
    _, _, _, port, public_port, lifetime = _MAP.unpack_from(data)
    if not port and lifetime:  # there is no mapping of all ports
        raise Wrong(Result.NOT_AUTHORIZED)
    return Map(transport, port, public_port, lifetime)


def address(public: ipaddress.IPv4Address, epoch: int) -> bytes:
    """The answer to a question for the public address, which is also what is announced unasked (section 3.2.1)."""
    return ANSWER.pack(VERSION, _R, Result.SUCCESS, epoch & 0xFFFFFFFF) + public.packed


def mapped(request: Map, public_port: int, lifetime: int, epoch: int) -> bytes:
    """The answer to a request that was carried out. After a deletion, port and lifetime are 0."""
    head = ANSWER.pack(VERSION, _R | request.opcode, Result.SUCCESS, epoch & 0xFFFFFFFF)
    return head + struct.pack("!HHI", request.port, public_port, lifetime)


def error(data: bytes, result: Result, epoch: int) -> bytes:
    """Encode the answer to a request that fails. It is as long as that to one that succeeds, if the opcode is known."""
    head = ANSWER.pack(VERSION, _R | (data[1] & 0x7F), result, epoch & 0xFFFFFFFF)
    if data[0] != VERSION or result in (Result.UNSUPPORTED_VERSION, Result.UNSUPPORTED_OPCODE):
        return head
    if data[1] == 0:
        return head + bytes(4)
    return head + data[4:6] + bytes(6)

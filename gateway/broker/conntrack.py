"""Connections that the kernel's connection tracking knows: those of a conversation are forgotten when it ends."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from alg.address import Endpoint
from gateway.broker.elements import second_of
from gateway.broker.netlink import (
    ACK,
    DUMP,
    HEADER,
    REQUEST,
    NetfilterError,
    Netlink,
    attribute,
    attribute_map,
    nested,
)
from gateway.model import Lease

_CONNTRACK = 1  # the subsystem
_GET, _DELETE = _CONNTRACK << 8 | 1, _CONNTRACK << 8 | 2
_BODY = HEADER.size + 4
_TUPLE_ORIGINAL, _ID, _FILTER, _FILTER_ORIGINAL, _FILTER_REPLY = 1, 12, 25, 1, 2
_IP, _PROTOCOL = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_PROTOCOL_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
# What of a tuple a dump is to be filtered by (CTA_FILTER, since Linux 5.8).
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL, _BY_SOURCE_PORT, _BY_DESTINATION_PORT = 1, 2, 8, 16, 32
_FAMILY = {4: 2, 6: 10}
_UDP = 17


@dataclass(frozen=True, slots=True)
class Socket:
    """UDP connections that began at (`source`) or went to an address and port."""

    endpoint: Endpoint
    source: bool


class Conntrack:
    """Finds and deletes UDP connections. Not for several threads. Raises NetfilterError."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def forget(self, sockets: Iterable[Socket]) -> int:
        """Delete the connections of these sockets; how many there were."""
        count = 0
        for sock in sockets:
            family = struct.pack(">BBH", _FAMILY[sock.endpoint.version], 0, 0)
            for connection in self._netlink.request(
                self._netlink.message(_GET, REQUEST | DUMP, family + _wanted(sock))
            ):
                fields = attribute_map(connection, _BODY)
                if not _is(fields.get(_TUPLE_ORIGINAL, b""), sock):
                    continue  # a kernel that does not know the filter names all
                which = attribute(_TUPLE_ORIGINAL | 0x8000, fields[_TUPLE_ORIGINAL])
                if _ID in fields:
                    which += attribute(_ID, fields[_ID])
                try:
                    self._netlink.request(self._netlink.message(_DELETE, REQUEST | ACK, family + which))
                except NetfilterError as error:
                    if error.code != errno.ENOENT:
                        raise
                count += 1
        return count


def connections_of(lease: Lease) -> tuple[Socket, ...]:
    """The UDP connections that must begin anew when a lease begins, changes or ends.

    When it begins: what a peer sent too early is a connection to this host itself, and stays one; what the inside
    socket sent before has another public port.
    """
    if lease.protocol != "udp" or lease.direction != "in":
        return ()
    ports = [(lease.public, lease.target)]
    if lease.second is not None:
        ports.append(second_of(lease))
    outside = tuple(Socket(public, source=False) for public, _ in ports)
    inside = (
        tuple(Socket(target, source=True) for _, target in ports)
        if lease.backend == "kernel" and not lease.uses
        else ()
    )
    return outside + inside


def _wanted(sock: Socket) -> bytes:
    version = sock.endpoint.version
    by = _BY_PROTOCOL | (_BY_SOURCE | _BY_SOURCE_PORT if sock.source else _BY_DESTINATION | _BY_DESTINATION_PORT)
    address = attribute((_SOURCE if sock.source else _DESTINATION)[version], sock.endpoint.ip.packed)
    port = attribute(_SOURCE_PORT if sock.source else _DESTINATION_PORT, struct.pack(">H", sock.endpoint.port))
    protocol = attribute(_PROTOCOL_NUMBER, bytes([_UDP])) + port
    flags = attribute(_FILTER_ORIGINAL, struct.pack("=I", by)) + attribute(_FILTER_REPLY, struct.pack("=I", 0))
    return nested(_TUPLE_ORIGINAL, nested(_IP, address), nested(_PROTOCOL, protocol)) + nested(_FILTER, flags)


def _is(original: bytes, sock: Socket) -> bool:
    fields = attribute_map(original)
    address, protocol = attribute_map(fields.get(_IP, b"")), attribute_map(fields.get(_PROTOCOL, b""))
    host = address.get((_SOURCE if sock.source else _DESTINATION)[sock.endpoint.version], b"")
    port = protocol.get(_SOURCE_PORT if sock.source else _DESTINATION_PORT, b"")
    return (
        protocol.get(_PROTOCOL_NUMBER) == bytes([_UDP])
        and host == ipaddress.ip_address(sock.endpoint.host).packed
        and port == struct.pack(">H", sock.endpoint.port)
    )

"""Connections that the kernel's connection tracking knows: those of a conversation are forgotten when it ends.

The kernel walks its whole table for each question (8.6 ms with 262,144 buckets), so one is asked for all sockets of
many requests (0036).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    FILTER_FLAG_CTA_IP_DST,
    FILTER_FLAG_CTA_IP_SRC,
    FILTER_FLAG_CTA_PROTO_NUM,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
)

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

_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
_GET_STATISTICS = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS
_FAMILY: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_BODY = HEADER.size + 4
_ORIGINAL, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ADDRESS = {(4, True): 1, (4, False): 2, (6, True): 3, (6, False): 4}  # by version and whether it is the source
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_UDP = bytes((socket.IPPROTO_UDP,))
_ENTRIES = 1

# One question for all of UDP costs about 5 us for each connection that there is; one for a host a walk of the table.
_FEW_HOSTS = 4
_FEW_ENTRIES = 1_000

_Host = tuple[bool, bytes]
"""An address, and whether connections from it (True) or to it are meant."""


@dataclass(frozen=True, slots=True)
class Socket:
    """UDP connections that began at (`source`) or went to an address and port."""

    endpoint: Endpoint
    source: bool


class Conntrack:
    """Finds and deletes UDP connections. Not for several threads. Raises NetfilterError."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def forget(self, sockets: Collection[Socket]) -> int:
        """Delete the connections of these sockets; how many there were."""
        count = 0
        for version in {sock.endpoint.version for sock in sockets}:
            ends = {
                (sock.source, sock.endpoint.ip.packed, sock.endpoint.port.to_bytes(2, "big"))
                for sock in sockets
                if sock.endpoint.version == version
            }
            for host in self._questions({(source, host) for source, host, _ in ends}):
                for connection in self._connections(version, host):
                    if not ends.isdisjoint(_ends_of(connection[_ORIGINAL], version)):
                        count += self._delete(version, connection)
        return count

    def _questions(self, hosts: set[_Host]) -> Collection[_Host | None]:
        """Which hosts to ask for; None: all of UDP at once, where that is less than to walk the table for each."""
        if len(hosts) <= _FEW_HOSTS:
            message = self._message(_GET_STATISTICS, REQUEST | ACK, 4, b"")
            entries = [attribute_map(packet, _BODY).get(_ENTRIES, b"") for packet in self._netlink.request(message)]
            if any(int.from_bytes(number, "big") > _FEW_ENTRIES for number in entries):
                return hosts
        return (None,)

    def _connections(self, version: int, host: _Host | None) -> Iterator[dict[int, bytes]]:
        """UDP connections from or to a host, or all. The kernel chooses (CTA_FILTER; before Linux 5.8 it names all)."""
        flags = FILTER_FLAG_CTA_PROTO_NUM
        wanted = nested(_TUPLE_PROTO, attribute(_NUMBER, _UDP))
        if host is not None:
            source, address = host
            flags |= FILTER_FLAG_CTA_IP_SRC if source else FILTER_FLAG_CTA_IP_DST
            wanted += nested(_TUPLE_IP, attribute(_ADDRESS[version, source], address))
        chosen = attribute(_FILTER_ORIGINAL, struct.pack("=I", flags)) + attribute(_FILTER_REPLY, bytes(4))
        body = nested(_ORIGINAL, wanted) + nested(_FILTER, chosen)
        for packet in self._netlink.request(self._message(_GET, REQUEST | DUMP, version, body)):
            found = attribute_map(packet, _BODY)
            if _ORIGINAL in found and _ID in found:
                yield found

    def _delete(self, version: int, connection: dict[int, bytes]) -> bool:
        """Delete a connection, named as the kernel has named it; False if it has just ended."""
        body = nested(_ORIGINAL, connection[_ORIGINAL]) + attribute(_ID, connection[_ID])
        if _ZONE in connection:
            body += attribute(_ZONE, connection[_ZONE])
        try:
            self._netlink.request(self._message(_DELETE, REQUEST | ACK, version, body))
        except NetfilterError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    def _message(self, kind: int, flags: int, version: int, body: bytes) -> bytes:
        return self._netlink.message(kind, flags, struct.pack(">BBH", _FAMILY[version], 0, 0) + body)


def connections_of(lease: Lease) -> tuple[Socket, ...]:
    """The UDP connections that must begin anew when a lease begins or ends.

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


def connections_between(old: Lease, new: Lease) -> frozenset[Socket]:
    """The UDP connections that must begin anew when a lease changes."""
    if (old.target, old.second) != (new.target, new.second):
        return frozenset({*connections_of(old), *connections_of(new)})
    if old.peers == new.peers:
        return frozenset()
    if old.peers is None or (new.peers is not None and not set(old.peers) <= set(new.peers)):
        # What was let out to a peer of before is marked, and would be dropped from now on.
        return frozenset(connections_of(new))
    return frozenset(sock for sock in connections_of(new) if not sock.source)  # the way out is as it was


def _ends_of(original: bytes, version: int) -> Iterator[tuple[bool, bytes, bytes]]:
    """Where a UDP connection began (True), and where it went to (False): address and port. Nothing of others."""
    parts = attribute_map(original)
    protocol = attribute_map(parts.get(_TUPLE_PROTO, b""))
    if protocol.get(_NUMBER) == _UDP:
        addresses = attribute_map(parts.get(_TUPLE_IP, b""))
        for source, port in ((True, _SOURCE_PORT), (False, _DESTINATION_PORT)):
            yield source, addresses.get(_ADDRESS[version, source], b""), protocol.get(port, b"")

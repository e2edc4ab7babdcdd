"""Finds connections in the kernel's connection tracking, and deletes some of them.

The kernel walks its whole table for each question (8.6 ms with 262,144 buckets), so one question is asked for the
sockets of many requests (decision 0036).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from alg.address import Endpoint, parse_ip
from gateway.broker.messages import (
    FILTER_FLAG_CTA_IP_DST,
    FILTER_FLAG_CTA_IP_SRC,
    FILTER_FLAG_CTA_PROTO_NUM,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
    NFNL_SUBSYS_CTNETLINK,
)
from gateway.broker.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSGHDR,
    NetfilterError,
    Netlink,
    attribute,
    attribute_map,
    nested,
)

_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
_GET_STATISTICS = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS
FAMILY: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_BODY = NLMSGHDR.size + 4
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK, CTA_ID, CTA_ZONE, CTA_MARK_MASK, CTA_FILTER = 1, 2, 8, 12, 18, 21, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
ADDRESS = {(4, True): 1, (4, False): 2, (6, True): 3, (6, False): 4}
"""The attributes of addresses (CTA_IP_V4_SRC and its like), by version and whether it is the source."""

CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
_IPPROTO_UDP = bytes((socket.IPPROTO_UDP,))
CTA_STATS_GLOBAL_ENTRIES = 1

_WALK = 1_000
"""Number of connections that can be read (5 µs each) in the time in which the kernel walks its table for one host."""

_Host = tuple[bool, bytes]
"""An address, and whether connections from it (True) or to it are meant."""


class TrackedEnd(NamedTuple):
    """An end of UDP connections: an address and port where they began (`source`), or where they went to."""

    endpoint: Endpoint
    source: bool


@dataclass(frozen=True, slots=True)
class Tracked:
    """A UDP connection: its ends as its first packet had them, and as the answers have them."""

    source: TrackedEnd
    destination: TrackedEnd
    reply_source: TrackedEnd
    reply_destination: TrackedEnd
    mark: int


@dataclass(frozen=True, slots=True)
class TrackedEntry:
    """A connection, and the attributes by which the kernel identifies it."""

    connection: Tracked
    version: int
    name: bytes


class Conntrack:
    """Finds and deletes UDP connections. Must not be used by two threads at a time. Raises NetfilterError."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def find(self, sockets: Collection[Endpoint]) -> list[TrackedEntry]:
        """Return the connections that began at any of these sockets, or went to one. Takes long, but nearly all of that
        time in the kernel, where other threads run."""
        result = []
        hosts = {host for host, _ in sockets}
        for version in {6 if ":" in host else 4 for host in hosts}:
            packed = [parse_ip(host).packed for host in hosts if (":" in host) == (version == 6)]
            for question in self._questions({(source, host) for host in packed for source in (True, False)}):
                for found in self._connections(version, question):
                    if any(_socket(*end).endpoint in sockets for end in _ends_of(found[CTA_TUPLE_ORIG], version)):
                        result.append(TrackedEntry(_read(found, version), version, _name(found)))
        return result

    def begun_with(self, mark: int) -> set[bytes]:
        """Return TCP and UDP connections whose mark has these bits, by destination, protocol, destination port and
        source of their first packet, as `elements.pack_key` packs them. The kernel walks its table once for each
        family."""
        result = set()
        for version, found in self._marked(mark):
            parts = attribute_map(found.get(CTA_TUPLE_ORIG, b""))
            protocol, address = (attribute_map(parts.get(kind, b"")) for kind in (CTA_TUPLE_PROTO, CTA_TUPLE_IP))
            number, port = protocol.get(CTA_PROTO_NUM), protocol.get(CTA_PROTO_DST_PORT)
            source, destination = (address.get(ADDRESS[version, end]) for end in (True, False))
            if number and port and source and destination:
                result.add(destination + number + b"\0\0\0" + port + b"\0\0" + source)
        return result

    def marked(self, mark: int) -> list[TrackedEntry]:
        """Return the UDP connections that have all bits of `mark` in their mark. The kernel walks its table once for
        each family."""
        return [
            TrackedEntry(_read(found, version), version, _name(found))
            for version, found in self._marked(mark)
            if CTA_ID in found and any(_ends_of(found.get(CTA_TUPLE_ORIG, b""), version))
        ]

    def _marked(self, mark: int) -> Iterator[tuple[int, dict[int, bytes]]]:
        """Yield IP version and attributes of each connection whose mark has these bits."""
        wanted = attribute(CTA_MARK, struct.pack(">I", mark)) + attribute(CTA_MARK_MASK, struct.pack(">I", mark))
        for version in (4, 6):
            for packet in self._netlink.request(self._message(_GET, NLM_F_REQUEST | NLM_F_DUMP, version, wanted)):
                yield version, attribute_map(packet, _BODY)

    def delete(self, found: TrackedEntry) -> bool:
        """Delete a connection's entry. Returns False if it has just ended."""
        try:
            self._netlink.request(self._message(_DELETE, NLM_F_REQUEST | NLM_F_ACK, found.version, found.name))
        except NetfilterError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    def _questions(self, hosts: set[_Host]) -> Collection[_Host | None]:
        """Return the hosts to ask for; None: all of UDP at once, where that is less than walking the table for each
        host."""
        message = self._message(_GET_STATISTICS, NLM_F_REQUEST | NLM_F_ACK, 4, b"")
        entries = sum(
            int.from_bytes(attribute_map(packet, _BODY).get(CTA_STATS_GLOBAL_ENTRIES, b""), "big")
            for packet in self._netlink.request(message)
        )
        return hosts if entries > len(hosts) * _WALK else (None,)

    def _connections(self, version: int, host: _Host | None) -> Iterator[dict[int, bytes]]:
        """Yield UDP connections from or to a host, or all. The kernel filters them (CTA_FILTER; before Linux 5.8 it
        returns all)."""
        flags = FILTER_FLAG_CTA_PROTO_NUM
        wanted = nested(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, _IPPROTO_UDP))
        if host is not None:
            source, address = host
            flags |= FILTER_FLAG_CTA_IP_SRC if source else FILTER_FLAG_CTA_IP_DST
            wanted += nested(CTA_TUPLE_IP, attribute(ADDRESS[version, source], address))
        chosen = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)) + attribute(
            CTA_FILTER_REPLY_FLAGS, bytes(4)
        )
        body = nested(CTA_TUPLE_ORIG, wanted) + nested(CTA_FILTER, chosen)
        for packet in self._netlink.request(self._message(_GET, NLM_F_REQUEST | NLM_F_DUMP, version, body)):
            found = attribute_map(packet, _BODY)
            if CTA_TUPLE_ORIG in found and CTA_ID in found:
                yield found

    def _message(self, kind: int, flags: int, version: int, body: bytes) -> bytes:
        return self._netlink.message(kind, flags, struct.pack(">BBH", FAMILY[version], 0, 0) + body)


def _name(found: dict[int, bytes]) -> bytes:
    """Return the attributes that identify a connection, its id included, because another one may have the same ends by
    now."""
    name = nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + attribute(CTA_ID, found[CTA_ID])
    return name + attribute(CTA_ZONE, found[CTA_ZONE]) if CTA_ZONE in found else name


def _read(found: dict[int, bytes], version: int) -> Tracked:
    source, destination = (_socket(*end) for end in _ends_of(found[CTA_TUPLE_ORIG], version))
    answers = {end[0]: _socket(*end) for end in _ends_of(found.get(CTA_TUPLE_REPLY, b""), version)}
    mark = int.from_bytes(found.get(CTA_MARK, b""), "big")
    return Tracked(source, destination, answers.get(True, destination), answers.get(False, source), mark)


def _socket(source: bool, address: bytes, port: bytes) -> TrackedEnd:
    return TrackedEnd(Endpoint(text_of(address), int.from_bytes(port, "big")), source)


@lru_cache(maxsize=4096)
def text_of(address: bytes) -> str:
    """Return the text of a packed address. Results are remembered."""
    return str(ipaddress.ip_address(address))


def _ends_of(original: bytes, version: int) -> Iterator[tuple[bool, bytes, bytes]]:
    """Yield where a UDP connection began (True) and where it went to (False): address and port. Nothing for other
    protocols."""
    parts = attribute_map(original)
    protocol = attribute_map(parts.get(CTA_TUPLE_PROTO, b""))
    if protocol.get(CTA_PROTO_NUM) == _IPPROTO_UDP:
        addresses = attribute_map(parts.get(CTA_TUPLE_IP, b""))
        for source, port in ((True, CTA_PROTO_SRC_PORT), (False, CTA_PROTO_DST_PORT)):
            yield source, addresses.get(ADDRESS[version, source], b""), protocol.get(port, b"")

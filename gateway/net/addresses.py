"""Finds out which addresses are this host's own, as its kernel says, and which of them the world sees."""

from __future__ import annotations

import _socket
import contextlib
import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from alg.address import Address, parse_ip
from gateway.model.hosts import seen_through
from gateway.model.requests import Along

# <linux/rtnetlink.h>
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_GETRULE = 32, 34
RTA_DST, RTA_GATEWAY, FRA_TABLE = 1, 5, 15
RTN_UNSPEC, RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = range(6)
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE = 0x1, 0x10, 0x40, 0x80
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_IPV6_RULE = 0x100, 0x400, 0x40000
IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x20, 0x40  # <linux/if_addr.h>
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300

LOOK = 0.001
"""Seconds between two checks for changes that the kernel has reported. Each check is a system call."""

_FAR = {4: "198.41.0.4", 6: "2001:503:ba3e::2:30"}
"""Hosts far outside (a root name server). Nothing is sent there: the routing table says which address faces them."""

_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7")
]

_KERNELS = frozenset({253, 254, 255})  # default, main, local
_OUR_TABLES = 0xA1600000  # where the broker's tables begin
_OWN = frozenset({RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST})
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths of destination and source, tos, table, ..., type, flags
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_AT = _HEADER.size + 7
_SO_ATTACH_FILTER = 26


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """Where pinholes of a flow listen (`local`, an address of this host), and the address that is advertised.

    `along`: the flow, if the broker is to find out by itself what the NAT makes of it. The addresses are then those
    that are expected, and what the broker found is advertised.
    """

    local: str
    advertised: str
    along: Along | None = None


def public_address(outside: str, facing: str) -> PublicAddress:
    """Return `facing`, an address of this host, unless `network.outside` names another one ("auto" does not)."""
    if outside == "auto" or (":" in outside) != (":" in facing):
        return PublicAddress(facing, facing)
    # Behind a further, static translation the named address is not ours: packets for it arrive at the facing one.
    return PublicAddress(outside if is_local(outside) else facing, outside)


class OwnAddresses:
    """Asks the kernel about addresses: the type of the route to each says whether it is local. No privilege is needed.

    Answers are remembered until the kernel reports that addresses, links, rules or local routes have changed. It
    reports that before the program that changes them gets its answer, so an answer is never older than LOOK seconds.
    """

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._known: dict[int, dict[int, int]] = {4: {}, 6: {}}
        self._by_policy: bool | None = None
        self._next_look = 0.0
        self._sequence = 0
        # Sockets that block: the answer is there when the question has been sent, so nothing waits.
        self._socket = _netlink(0)
        groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE
        self._events = _netlink(groups | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_RULE)
        hear_only_of_local_routes(self._events)

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close()
        self._events.close()

    def has(self, address: Address) -> bool:
        """Whether packets to this very address end at this host: the address is its own, or a broadcast or anycast
        address at which it listens. Addresses that it embeds are not considered (`seen_through`)."""
        return self._type_of(address) in _OWN

    def is_local(self, host: str) -> bool:
        """Whether `host`, the text of an address, is an address of this host from which it may send. Raises ValueError
        for a name."""
        return self._type_of(parse_ip(host)) == RTN_LOCAL

    def routes_by_policy(self) -> bool:
        """Whether rules other than the kernel's three (ip-rule(8)) choose among routing tables, so that the way of a
        packet may depend on more than its destination. algate's own rule does not count."""
        self._look()
        if self._by_policy is None:
            self._by_policy = any(table and table < _OUR_TABLES and table not in _KERNELS for table in self._tables())
        return self._by_policy

    def _tables(self) -> Iterator[int]:
        """Return the tables that rules lead to."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        request = _HEADER.pack(_HEADER.size + 1, RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        self._socket.send(request + bytes(1))
        while True:
            data = self._socket.recv(65536)
            while len(data) >= _HEADER.size:
                length, kind, _, sequence, _ = _HEADER.unpack_from(data)
                if sequence == self._sequence:
                    if kind != RTM_NEWRULE:  # the end, or an error
                        return
                    yield _table_of(data[:length])
                data = data[max((length + 3) & ~3, _HEADER.size) :]

    def _look(self) -> None:
        now = monotonic()
        if now >= self._next_look:
            self._forget_what_changed()
            self._next_look = now + LOOK

    def _type_of(self, address: Address) -> int:
        self._look()
        known, number = self._known[address.version], int(address)
        kind = known.get(number)
        if kind is None:
            kind = self._ask(address)
            if len(known) >= self._size:
                known.clear()
            known[number] = kind
        return kind

    def _forget_what_changed(self) -> None:
        while True:
            try:
                self._events.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: there was more than the kernel could tell us
                pass
            for known in self._known.values():
                known.clear()
            self._by_policy = None

    def _ask(self, address: Address) -> int:
        """Return the type of the route to an address; RTN_UNSPEC if there is no route."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        packed = address.packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), RTA_DST) + packed
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0) + body)
        while True:
            answer = self._socket.recv(65536)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence == self._sequence:
                return answer[_TYPE_AT] if kind == RTM_NEWROUTE else RTN_UNSPEC


def is_own(host: str) -> bool:
    """Whether packets to `host`, the text of an address in any spelling, end at this host, including those to an IPv4
    address that it embeds. For a single question; `OwnAddresses` is for many. Raises ValueError for a name."""
    own = OwnAddresses()
    try:
        return any(ip.is_unspecified or own.has(ip) for ip in seen_through(ipaddress.ip_address(host)))
    finally:
        own.close()


def is_local(host: str) -> bool:
    """`OwnAddresses.is_local` for a single question. Raises ValueError for a name."""
    own = OwnAddresses()
    try:
        return own.is_local(host)
    finally:
        own.close()


def source_towards(host: str, device: int = 0) -> str | None:
    """Return the address of this host from which it sends to `host`, the text of an address; None if there is no route.
    `device`: the index of the interface by which packets leave; 0: the one that the routes say."""
    ip = _without_zone(parse_ip(host))
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)  # never blocks; keeps gevent from resolving the address in a thread
        try:
            if device:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, socket.if_indextoname(device).encode())
            probe.connect((str(ip), 9))
        except OSError:
            # Without a route of its own IPv4 takes the interface's address; IPv6, where routes are by source, does not.
            return _global_address(device) if device and ip.version == 6 else None
        source: str = probe.getsockname()[0]
        return source.partition("%")[0]


def facing_the_world(version: int) -> str | None:
    """Return the address of this host that faces the default route of a family; None: there is no route."""
    return source_towards(_FAR[version])


def router_above(version: int) -> str | None:
    """Return the address of the router to which this host's default route of a family leads, without zone; None: there
    is no route, or the link has no addresses (PPP). Raises OSError."""
    packed = ipaddress.ip_address(_FAR[version]).packed
    body = _ROUTE.pack(socket.AF_INET if version == 4 else socket.AF_INET6, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), RTA_DST) + packed
    sock = _netlink(0)
    try:
        sock.send(_HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + body)
        answer = sock.recv(65536)  # it is there: the kernel answers before `send` returns
    finally:
        sock.close()
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != RTM_NEWROUTE:
        return None
    at = _HEADER.size + _ROUTE.size
    while at + _ATTRIBUTE.size <= length:
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == RTA_GATEWAY:
            return str(ipaddress.ip_address(answer[at + _ATTRIBUTE.size : at + size]))
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
    return None


def is_private(address: str) -> bool:
    """Whether an address cannot be reached from the Internet: a private one, or that of a carrier's NAT (RFC 1918,
    6598, 4193)."""
    ip = ipaddress.ip_address(address)
    return any(ip in network for network in _PRIVATE)


def _global_address(device: int) -> str | None:
    """Return an IPv6 address of global scope of the interface with this index; None if it has none."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        for line in lines:
            digits, index, _, scope, flags, _ = line.split()
            if int(index, 16) == device and scope == "00" and not int(flags, 16) & (IFA_F_TENTATIVE | IFA_F_DEPRECATED):
                return str(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return None


def _table_of(message: bytes) -> int:
    """Return the table of a rule in a netlink message (<linux/fib_rules.h>): small numbers are in the header."""
    table = message[_HEADER.size + 4]
    at = _HEADER.size + _ROUTE.size
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == FRA_TABLE and size >= 8:
            table = int.from_bytes(message[at + 4 : at + 8], sys.byteorder)
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
    return table


def _without_zone(ip: Address) -> Address:
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        return ipaddress.IPv6Address(int(ip))
    return ip


def _netlink(groups: int) -> _socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = _socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock


def hear_only_of_local_routes(sock: _socket.socket) -> None:
    """Attach a filter (bpf(4)) that passes, of messages about routes, only those whose type is not RTN_UNICAST. A
    router that learns routes gets thousands of messages that say nothing about its own addresses."""
    low_byte = 4 if sys.byteorder == "little" else 5  # of nlmsg_type
    program: Sequence[tuple[int, int, int, int]] = (
        (0x30, 0, 0, low_byte),  # ldb [type]
        (0x15, 1, 0, RTM_NEWROUTE),  # jeq: look at its type
        (0x15, 0, 2, RTM_DELROUTE),  # jeq; else take it
        (0x30, 0, 0, _TYPE_AT),  # ldb [rtm_type]
        (0x15, 1, 0, RTN_UNICAST),  # jeq: leave it
        (0x06, 0, 0, 0xFFFFFFFF),  # ret: take it
        (0x06, 0, 0, 0),  # ret: leave it
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))

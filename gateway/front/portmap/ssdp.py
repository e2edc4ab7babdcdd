"""Discovery on the inside interfaces: searches are answered, and from time to time clients are told who is there.

The sockets are bound to port 1900 of all addresses by the supervisor; only what comes in by an inside interface from an
inside address is read, and each answer leaves from the address of this host that faces the client.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from typing import NamedTuple

import gevent
import gevent.socket as gsocket

from alg.address import canonical
from alg.bucket import Rate
from alg.upnp import ssdp
from alg.upnp.ssdp import GROUP4, GROUP6, PORT, Speaker
from gateway.net.addresses import source_towards
from gateway.observe.log import get_logger

log = get_logger()

ALIVE = 900.0  # seconds between two announcements: half of what clients believe
LOOK = 10.0  # seconds between two looks at the interfaces
PER_SECOND = 10.0  # answers to a host, on average; a search for everything has ten
BURST = 60.0
MOST_WAITING = 256  # answers of all hosts that wait for their moment
HOPS = 2  # UDA 1.1, 1.1: TTL of what goes to the group
_SPACING = 0.01  # seconds between datagrams of an announcement

_PKTINFO4 = struct.Struct("=I4s4s")  # in_pktinfo: interface, own address, destination
_PKTINFO6 = struct.Struct("=16sI")
_ROOM = socket.CMSG_SPACE(_PKTINFO6.size)
_IP_PKTINFO = 8  # <linux/in.h>

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Speak = Callable[[str], Speaker]


class Place(NamedTuple):
    """An address of this host at an inside interface, where clients are told of the gateway."""

    interface: int
    host: str

    @property
    def group(self) -> str:
        """The group that is spoken to there."""
        return GROUP6 if ":" in self.host else GROUP4


class Ssdp:
    """Speaks SSDP by the sockets `four` and `six` (None: not over that family).

    `interfaces`: the names of inside interfaces; `inside`: the networks of clients; `speak(host)`: the gateway as it is
    found at this address of its own.
    """

    def __init__(
        self,
        four: gsocket.socket | None,
        six: gsocket.socket | None,
        interfaces: Sequence[str],
        inside: Sequence[Network],
        speak: Speak,
    ) -> None:
        self._four, self._six = four, six
        self._interfaces = interfaces
        self._inside = inside
        self._speak = speak
        self._rate = Rate(PER_SECOND, BURST)
        self._indexes: frozenset[int] = frozenset()
        self._places: set[Place] = set()
        self._joined: set[tuple[int, int]] = set()
        self._waiting = 0
        self.searches = self.answered = self.refused = 0
        for sock in filter(None, (four, six)):
            _prepare(sock)

    def run(self) -> None:
        """Read searches, and announce, for ever."""
        for sock in filter(None, (self._four, self._six)):
            gevent.spawn(self._read, sock)
        due = 0.0
        while True:
            new = self._look()
            if time.monotonic() >= due:
                due = time.monotonic() + ALIVE * random.uniform(0.9, 1.0)
                new = self._places
            if new:
                self._announce(new)
            gevent.sleep(LOOK)

    def stop(self) -> None:
        """Tell everybody that the gateway is not there any more."""
        for place in self._places:
            for message in ssdp.byebye(self._speak(place.host), place.group):
                self._send_to_group(message, place)

    # --- where ------------------------------------------------------------------------------------------------------

    def _look(self) -> set[Place]:
        """Join the groups of the interfaces that are there, and return the addresses that have appeared."""
        self._indexes = indexes = _indexes(self._interfaces)
        found: set[Place] = set()
        for index in indexes:
            if self._four is not None and self._join(4, index):
                host = _address4(index)
                if host is not None:
                    found.add(Place(index, host))
            if self._six is not None and self._join(6, index):
                host = self._address6(index)
                if host is not None:
                    found.add(Place(index, host))
        self._joined = {(version, index) for version, index in self._joined if index in indexes}
        new, self._places = found - self._places, found
        return new

    def _join(self, version: int, index: int) -> bool:
        """Join the group at an interface, if that was not done; whether it is a member."""
        if (version, index) in self._joined:
            return True
        try:
            if version == 4:
                assert self._four is not None
                member = struct.pack("=4s4si", socket.inet_aton(GROUP4), bytes(4), index)
                self._four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            else:
                assert self._six is not None
                member = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("=I", index)
                self._six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        except OSError as error:
            if error.errno != 98:  # EADDRINUSE: it is one, of a time when this name was another interface's
                return False
        self._joined.add((version, index))
        return True

    def _address6(self, index: int) -> str | None:
        """Return the address that is announced over IPv6: one of the inside networks, as pinholes are asked for from
        such a one; else that of the link."""
        link = None
        for host in _addresses6(index):
            ip = ipaddress.IPv6Address(host)
            if any(ip in network for network in self._inside if network.version == 6):
                return host
            if ip.is_link_local:
                link = host
        return link

    # --- searches ---------------------------------------------------------------------------------------------------

    def _read(self, sock: gsocket.socket) -> None:
        while True:
            try:
                data, passed, _, source = sock.recvmsg(ssdp.LONGEST_SEARCH + 1, _ROOM)
            except OSError:
                gevent.sleep(0.1)  # an error of something that was sent
                continue
            index = _interface_of(passed)
            if index is not None and self.is_inside(source, index):
                self._take(data, sock, source, index)

    def is_inside(self, source: tuple[object, ...], index: int | None = None) -> bool:
        """Whether a socket address is that of an inside client. `index`: the interface by which it came; None: not
        known, but for an address of a link, which says it itself."""
        ip = canonical(str(source[0]).partition("%")[0])
        if ip.version == 6 and ip.is_link_local:
            return source[3] in self._indexes
        if index is not None and index not in self._indexes:
            return False
        return any(ip.version == network.version and ip in network for network in self._inside)

    def _take(self, data: bytes, sock: gsocket.socket, source: tuple[object, ...], index: int) -> None:
        search = ssdp.read_search(data)
        if search is None:
            return
        self.searches += 1
        client = str(source[0]).partition("%")[0]
        host = self._address6(index) if ":" in client else source_towards(client)
        if host is None:
            return
        for message in ssdp.answers(search, self._speak(host), formatdate(usegmt=True)):
            if self._waiting >= MOST_WAITING or not self._rate.take(client, time.monotonic()):
                self.refused += 1
                return
            self._waiting += 1
            gevent.spawn_later(random.uniform(0.0, 0.1 * search.wait), self._answer, message, sock, source)

    def _answer(self, message: bytes, sock: gsocket.socket, source: tuple[object, ...]) -> None:
        self._waiting -= 1
        with contextlib.suppress(OSError):
            sock.sendto(message, source)
            self.answered += 1

    # --- announcements ----------------------------------------------------------------------------------------------

    def _announce(self, places: set[Place]) -> None:
        for place in sorted(places):
            speaker = self._speak(place.host)
            for message in (*ssdp.byebye(speaker, place.group), *ssdp.alive(speaker, place.group)):
                self._send_to_group(message, place)
                gevent.sleep(_SPACING)

    def _send_to_group(self, message: bytes, place: Place) -> None:
        with contextlib.suppress(OSError):  # the interface has gone
            if place.group == GROUP6:
                assert self._six is not None
                self._six.sendto(message, (GROUP6, PORT, 0, place.interface))
            else:
                assert self._four is not None
                info = _PKTINFO4.pack(place.interface, socket.inet_aton(place.host), bytes(4))
                self._four.sendmsg([message], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, (GROUP4, PORT))


def _prepare(sock: gsocket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)


def _indexes(names: Sequence[str]) -> frozenset[int]:
    """Return the indexes of the interfaces of these names that are there; "wg+" is every name that begins with "wg", as
    iptables has it."""
    begins = tuple(name[:-1] for name in names if name.endswith("+"))
    there = socket.if_nameindex()
    return frozenset(index for index, name in there if name in names or (begins and name.startswith(begins)))


def _interface_of(passed: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return the interface by which a datagram has come."""
    for level, kind, data in passed:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _PKTINFO4.size:
            return int(_PKTINFO4.unpack_from(data)[0])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= _PKTINFO6.size:
            return int(_PKTINFO6.unpack_from(data)[1])
    return None


def _address4(index: int) -> str | None:
    """Return the address from which this host speaks to the group at an interface."""
    with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index)
            )
            probe.connect((GROUP4, PORT))
        except OSError:
            return None
        host: str = probe.getsockname()[0]
        return None if host == "0.0.0.0" else host


def _addresses6(index: int) -> Iterator[str]:
    """Return the addresses of an interface that are neither tentative nor deprecated."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        for line in lines:
            digits, number, _, _, flags, _ = line.split()
            if int(number, 16) == index and not int(flags, 16) & 0x60:
                yield str(ipaddress.IPv6Address(bytes.fromhex(digits)))

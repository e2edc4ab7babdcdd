"""UPnP discovery on the inside interfaces: answers searches, and announces the device from time to time. The supervisor
binds each socket to port 1900 of one inside interface. Requests from inside addresses are answered with the address of
this host that faces them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate

import gevent
import gevent.socket as gsocket

from alg.address import canonical, is_private
from alg.bucket import Rate
from alg.upnp import ssdp
from alg.upnp.ssdp import GROUP4, GROUP6, PORT, Speaker
from gateway.model.requests import Network
from gateway.net.addresses import source_towards
from gateway.observe.log import get_logger

log = get_logger()

ALIVE = 900.0  # seconds between two announcements: half of what clients believe
LOOK = 5.0  # seconds between two looks at the addresses
PER_SECOND = 10.0  # answers to a host, on average; a search for everything has ten
BURST = 60.0
MOST_WAITING = 256  # answers of all hosts that wait for their moment
HOPS = 2  # UDA 1.1, 1.1: TTL of what goes to the group
BATCH = 16  # datagrams read in a row: then others have their turn
_SPACING = 0.01  # seconds between datagrams of an announcement
_NOT_YET = 0x60  # IFA_F_TENTATIVE, IFA_F_DEPRECATED (<linux/if_addr.h>)

Speak = Callable[[str], Speaker]


def is_inside(inside: Sequence[Network], address: tuple[object, ...]) -> bool:
    """Whether a socket address that came by an inside interface is that of a client: of an inside network, or of the
    link itself."""
    ip = canonical(str(address[0]).partition("%")[0])
    if ip.version == 6 and ip.is_link_local:
        return True
    return any(ip.version == network.version and ip in network for network in inside)


class Corner:
    """UPnP's discovery at one inside interface, for one family. `sock` is bound to the interface; `host` is the address
    that is announced there."""

    def __init__(self, sock: gsocket.socket, interface: str, inside: Sequence[Network]) -> None:
        self.sock = sock
        self.host: str | None = None
        self._index = socket.if_nametoindex(interface)
        self._inside = [network for network in inside if network.version == 6]
        self._joined = False
        self._prepare()

    @property
    def group(self) -> str:
        """The group of this family."""
        return GROUP6 if self.sock.family == socket.AF_INET6 else GROUP4

    def look(self) -> bool:
        """Join the multicast group if that was not done, and look up the address. Returns whether the address has
        changed."""
        if not self._joined:
            self._joined = self._join()
        before, self.host = self.host, self._address6() if self.group == GROUP6 else self._address4()
        return self.host is not None and self.host != before

    def towards(self, client: str) -> str | None:
        """Return the address that a client is told. Over IPv6 it is one for all: a client that asks there asks from an
        address of the same scope, and pinholes can be asked for from a global one only."""
        return self.host if self.group == GROUP6 else source_towards(client)

    def send(self, message: bytes) -> None:
        """Send to the group."""
        where = (GROUP6, PORT, 0, self._index) if self.group == GROUP6 else (GROUP4, PORT)
        with contextlib.suppress(OSError):  # the interface has gone
            self.sock.sendto(message, where)

    def _prepare(self) -> None:
        if self.group == GROUP4:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _member4(bytes(4), self._index))
        else:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)

    def _join(self) -> bool:
        try:
            if self.group == GROUP4:
                member = _member4(socket.inet_aton(GROUP4), self._index)
                self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            else:
                member = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("=I", self._index)
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        except OSError as error:
            return error.errno == errno.EADDRINUSE  # the process before this one has joined
        return True

    def _address4(self) -> str | None:
        """Return the address from which this host speaks to the group."""
        with gsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _member4(bytes(4), self._index))
                probe.connect((GROUP4, PORT))
            except OSError:
                return None
            host: str = probe.getsockname()[0]
            return None if host == "0.0.0.0" else host

    def _address6(self) -> str | None:
        """Return the best address: a global one of an inside network, a private one, or that of the link."""
        best: tuple[int, str] | None = None
        for host in _addresses6(self._index):
            ip = ipaddress.IPv6Address(host)
            if ip.is_link_local:
                rank = 2
            elif any(ip in network for network in self._inside):
                rank = 1 if is_private(ip) else 0
            else:
                continue
            best = min(best or (rank, host), (rank, host))
        return best[1] if best is not None else None


class Ssdp:
    """Speaks SSDP at all corners. `inside`: the networks of clients; `speak(host)`: the gateway as it is found at this
    address of its own; `identify`: which addresses are one host, for the rate."""

    def __init__(
        self, corners: Sequence[Corner], inside: Sequence[Network], speak: Speak, identify: Callable[[str], str]
    ) -> None:
        self._corners = corners
        self._inside = inside
        self._speak = speak
        self._identify = identify
        self._rate = Rate(PER_SECOND, BURST)
        self._waiting = 0
        self.searches = self.answered = self.refused = 0

    def run(self) -> None:
        """Read searches, and announce, for ever."""
        for corner in self._corners:
            gevent.spawn(self._read, corner)
        due = 0.0
        while True:
            new = [corner for corner in self._corners if _looks(corner)]
            if time.monotonic() >= due:
                due = time.monotonic() + ALIVE * random.uniform(0.9, 1.0)
                new = [corner for corner in self._corners if corner.host is not None]
            for corner in new:
                self._announce(corner)
            gevent.sleep(LOOK)

    def stop(self) -> None:
        """Tell everybody that the gateway is not there any more."""
        for corner in self._corners:
            if corner.host is not None:
                for message in ssdp.byebye(self._speak(corner.host), corner.group):
                    corner.send(message)

    def _read(self, corner: Corner) -> None:
        for number in itertools.count(1):
            if number % BATCH == 0:
                gevent.sleep(0)  # where there is always one more, reading does not wait
            try:
                data, source = corner.sock.recvfrom(ssdp.LONGEST_SEARCH + 1)
            except OSError:  # of something that was sent; or the interface has gone
                gevent.sleep(0.1)
                continue
            if is_inside(self._inside, source):
                with contextlib.suppress(OSError):  # no descriptor is left
                    self._take(data, corner, source)

    def _take(self, data: bytes, corner: Corner, source: tuple[object, ...]) -> None:
        search = ssdp.read_search(data)
        if search is None:
            return
        self.searches += 1
        client = str(source[0]).partition("%")[0]
        host = corner.towards(client)
        if host is None:
            return
        payer = self._identify(client)
        for message in ssdp.answers(search, self._speak(host), formatdate(usegmt=True)):
            if self._waiting >= MOST_WAITING or not self._rate.take(payer, time.monotonic()):
                self.refused += 1
                return
            self._waiting += 1
            gevent.spawn_later(random.uniform(0.0, 0.1 * search.wait), self._answer, message, corner.sock, source)

    def _answer(self, message: bytes, sock: gsocket.socket, source: tuple[object, ...]) -> None:
        self._waiting -= 1
        with contextlib.suppress(OSError):
            sock.sendto(message, source)
            self.answered += 1

    def _announce(self, corner: Corner) -> None:
        """Say that what was there before is gone, and that this is there."""
        assert corner.host is not None
        speaker = self._speak(corner.host)
        for message in (*ssdp.byebye(speaker, corner.group), *ssdp.alive(speaker, corner.group)):
            corner.send(message)
            gevent.sleep(_SPACING)


def _looks(corner: Corner) -> bool:
    """Whether a corner has another address now."""
    try:
        return corner.look()
    except OSError:  # no descriptor is left: it is looked at again
        return False


def _member4(group: bytes, index: int) -> bytes:
    """struct ip_mreqn (ip(7))."""
    return struct.pack("=4s4si", group, bytes(4), index)


def _addresses6(index: int) -> Iterator[str]:
    """Return the addresses of an interface that can be used."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as lines:
        for line in lines:
            digits, number, _, _, flags, _ = line.split()
            if int(number, 16) == index and not int(flags, 16) & _NOT_YET:
                yield str(ipaddress.IPv6Address(bytes.fromhex(digits)))

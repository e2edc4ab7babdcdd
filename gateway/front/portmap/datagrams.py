"""UDP sockets at inside interfaces, where clients ask: each datagram with the address that was asked, and answers that
leave from it.

With keepalived the address that was asked may be one of several, and clients ignore an answer from another one.
"""

from __future__ import annotations

import _socket
import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import gevent
from gevent.pool import Pool

from gateway.net.libev import EV_READ
from gateway.observe.counters import count
from gateway.observe.log import get_logger

IP_PKTINFO = 8  # <linux/in.h>
_PKTINFO4 = struct.Struct("=I4s4s")  # in_pktinfo: index, spec_dst, addr
_PKTINFO6 = struct.Struct("=16sI")  # in6_pktinfo
_ROOM = 256
_BATCH = 32  # datagrams read in a row: then others have their turn
MOST_AT_ONCE = 256  # questions of all hosts that wait for the broker; further ones are dropped

# <linux/in.h>
_IP_MULTICAST_TTL, _IP_MULTICAST_LOOP = 33, 34

log = get_logger()


class MappingDatagram(NamedTuple):
    """A datagram. `source`: the address of its sender; `port`: its port; `at`: the address that it was sent to;
    `interface`: the index of that by which it came."""

    data: bytes
    source: str
    port: int
    at: str
    interface: int


class DatagramSocket:
    """One socket of the supervisor's, bound to an inside interface.

    `accepts` decides whether a sender is answered at all, before anything is read. `answer` is called in a greenlet of
    its own, with `Asked`, and returns what to say; None: nothing. `accepts_at`: which addresses of this host may be
    asked, beside link-local ones and groups.
    """

    def __init__(
        self,
        sock: _socket.socket,
        longest: int,
        accepts: Callable[[str], bool],
        answer: Callable[[MappingDatagram], bytes | None],
        accepts_at: Callable[[str], bool],
    ) -> None:
        self.sock = sock
        self.version = 6 if sock.family == socket.AF_INET6 else 4
        self._longest = longest
        self._accepts = accepts
        self._answer = answer
        self._accepts_at = accepts_at
        self._pool = Pool(MOST_AT_ONCE)
        sock.setblocking(False)
        if self.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._readable = gevent.get_hub().loop.io(sock.fileno(), EV_READ)

    def start(self) -> None:
        """Begin to answer."""
        self._readable.start(self._read)

    def stop(self) -> None:
        """Stop answering."""
        self._readable.stop()
        self._readable.close()

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                data, passed, flags, address = self.sock.recvmsg(self._longest + 1, _ROOM)
            except BlockingIOError:
                return
            except OSError as error:  # an interface that is gone
                log.warning("portmap.socket_failed", error=error.strerror)
                return
            asked = self._asked(data, passed, address)
            if asked is None or flags & socket.MSG_CTRUNC or not self._is_for_us(asked):
                continue
            if self._pool.full():
                count("algate_portmap_dropped_total")
                continue
            self._pool.spawn(self._serve, asked)

    def _is_for_us(self, asked: MappingDatagram) -> bool:
        """Whether the question came to an address of the inside, or to a group, and its sender may ask."""
        at = ipaddress.ip_address(asked.at)
        inside = at.is_link_local or at.is_multicast or self._accepts_at(asked.at)
        return inside and asked.port > 0 and self._accepts(asked.source)

    def _asked(self, data: bytes, passed: list[tuple[int, int, bytes]], address: object) -> MappingDatagram | None:
        assert isinstance(address, tuple)
        source, port = str(address[0]).partition("%")[0], int(address[1])
        for level, kind, value in passed:
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(value) >= _PKTINFO4.size:
                index, _, at4 = _PKTINFO4.unpack_from(value)
                return MappingDatagram(data, source, port, str(ipaddress.IPv4Address(at4)), index)
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(value) >= _PKTINFO6.size:
                at6, index = _PKTINFO6.unpack_from(value)
                return MappingDatagram(data, source, port, str(ipaddress.IPv6Address(at6)), index)
        return None

    def _serve(self, asked: MappingDatagram) -> None:
        said = self._answer(asked)
        if said is not None:
            self.say(said, asked)

    def say(self, data: bytes, asked: MappingDatagram) -> None:
        """Send to the host that has asked, from the address that it asked."""
        target: tuple[object, ...]
        if self.version == 4:
            own = asked.at if not ipaddress.ip_address(asked.at).is_multicast else "0.0.0.0"
            info = _PKTINFO4.pack(asked.interface, socket.inet_aton(own), bytes(4))
            control = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
            target = (asked.source, asked.port)
        else:
            own6 = ipaddress.ip_address(asked.at)
            info = _PKTINFO6.pack(bytes(16) if own6.is_multicast else own6.packed, asked.interface)
            control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
            target = (asked.source, asked.port, 0, asked.interface)
        try:
            self.sock.sendmsg([data], control, 0, target)
        except OSError as error:
            log.debug("portmap.unsaid", client=asked.source, error=error.strerror)

    def multicast(self, data: bytes, group: str, port: int) -> None:
        """Send to a group on the link of this interface. What cannot be sent is left out."""
        target: tuple[object, ...] = (group, port) if self.version == 4 else (group, port, 0, 0)
        try:
            if self.version == 4:
                self.sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_LOOP, 0)
            self.sock.sendto(data, target)
        except OSError as error:
            log.debug("portmap.unsaid", client=group, error=error.strerror)

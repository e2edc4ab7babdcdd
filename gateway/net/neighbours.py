"""Finds out which addresses belong to one machine: those that the kernel has seen with one link-layer address
(ip-neighbour(8)).

A host has one IPv4 address and as many IPv6 addresses as it likes (RFC 8981), all of which share a /64 with every other
host of its link. So neither the address nor the /64 identifies it. Its link-layer address does, if it is on a link of
this router. Forged link-layer addresses are the switch's problem.
"""

from __future__ import annotations

import _socket
import ipaddress
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from gateway.policy.clients import ClientIdentity

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SOONEST = 1.0  # seconds between two questions for all of them
DEADLINE = 0.5  # seconds for the answer
MOST = 65_536  # addresses that are remembered
MOST_READ = 4096  # addresses whose text was read, which is dear and asked for with every connection

# <linux/netlink.h>, <linux/rtnetlink.h>, <linux/neighbour.h>
_NETLINK_ROUTE = 0
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTMGRP_NEIGH = 4
_NDA_DST, _NDA_LLADDR = 1, 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_MESSAGE = struct.Struct("=BBHiHBB")  # struct ndmsg
_ATTRIBUTE = struct.Struct("=HH")


class Source(Protocol):
    """A source of link-layer addresses."""

    def all(self) -> dict[str, str]:
        """Return all current link-layer addresses, by address. Raises OSError."""
        ...

    def news(self) -> dict[str, str] | None:
        """Return the link-layer addresses that are new since the last call; None if that is not known."""
        ...


class Kernel:
    """The kernel's neighbour table, and its reports of changes (rtnetlink(7)). Needs no privilege."""

    def __init__(self) -> None:
        flags = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._changes = _socket.socket(_socket.AF_NETLINK, flags, _NETLINK_ROUTE)
        self._changes.bind((0, _RTMGRP_NEIGH))

    def close(self) -> None:
        self._changes.close()

    def news(self) -> dict[str, str] | None:
        found: dict[str, str] = {}
        while True:
            try:
                data = self._changes.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: there were more than the socket holds
                return None
            _read(found, data)

    def all(self) -> dict[str, str]:
        found: dict[str, str] = {}
        sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        try:
            sock.settimeout(DEADLINE)
            body = _MESSAGE.pack(_socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)
            header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETNEIGH, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
            sock.sendto(header + body, (0, 0))
            while _read(found, sock.recv(1 << 16)):
                pass
        finally:
            sock.close()
        return found


def _read(found: dict[str, str], data: bytes) -> bool:
    """Read a packet into `found`. Returns whether more packets follow. Raises OSError."""
    at = 0
    while at < len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if kind == _NLMSG_DONE:
            return False
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
            raise OSError(code, os.strerror(code))
        if kind == _RTM_NEWNEIGH:
            _add(found, data[at + _HEADER.size + _MESSAGE.size : at + length])
        at += length + 3 & ~3
    return True


def _add(found: dict[str, str], attributes: bytes) -> None:
    address = link = b""
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return
        value = attributes[at + _ATTRIBUTE.size : at + length]
        if kind == _NDA_DST:
            address = value
        elif kind == _NDA_LLADDR:
            link = value
        at += length + 3 & ~3
    if len(address) in (4, 16) and any(link):
        found[str(ipaddress.ip_address(address))] = link.hex()


class _Address(NamedTuple):
    """An address that was parsed: its canonical spelling, the client that it belongs to if nothing more is known, and
    its place."""

    text: str
    identity: ClientIdentity
    is_inside: bool


class Neighbours:
    """Identifies the client to which an address belongs. `inside`: the networks of clients."""

    def __init__(
        self,
        inside: Sequence[Network] = (),
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inside = tuple(inside)
        self._read: dict[str, _Address] = {}
        self._source = source
        self._clock = clock
        self._links: dict[str, str] = {}
        self._missed = True  # what there is has to be asked for
        self._next = 0.0

    @property
    def inside(self) -> tuple[Network, ...]:
        """The networks of clients."""
        return self._inside

    @inside.setter
    def inside(self, networks: Sequence[Network]) -> None:
        self._inside = tuple(networks)
        self._read.clear()

    def identify(self, address: str) -> ClientIdentity:
        """Return the host and the network of an address. Outside, a /64 is one host, because it belongs to one
        household. An inside host whose link-layer address is known has one identity for all its addresses."""
        read = self._read.get(address)
        if read is None:
            if len(self._read) >= MOST_READ:
                self._read.clear()
            read = self._read[address] = self._parsed(address)
        link = self._link(read.text) if read.is_inside else None
        return read.identity if link is None else ClientIdentity(f"link {link}", f"link {link}")

    def _parsed(self, address: str) -> _Address:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        text = str(ip)
        network = text if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
        is_inside = any(ip in inside for inside in self._inside)
        return _Address(text, ClientIdentity(text if is_inside else network, network), is_inside)

    def single(self, address: str) -> str:
        """Return what counts as one client where nobody else may be hit: by a ban, by the limits of rules. For IPv4 it
        is the address alone, however many others seem to have its link-layer address (a bridge may answer for them);
        for IPv6 inside, the host with all its addresses; outside, the /64."""
        return address if ":" not in address else self.identify(address).host

    def _link(self, address: str) -> str | None:
        found = self._links.get(address)
        if found is not None or self._source is None:
            return found
        news = self._source.news()
        if news is None:
            self._missed = True
        else:
            self._learn(news)
        if self._missed and self._clock() >= self._next:
            begun = self._clock()
            try:
                self._learn(self._source.all())
                self._missed = False
            except OSError:
                pass  # it is asked again
            after = self._clock()
            self._next = after + max(SOONEST, 10 * (after - begun))
        return self._links.get(address)

    def _learn(self, links: dict[str, str]) -> None:
        """Add link-layer addresses. Those that the kernel forgets stay true."""
        if len(self._links) + len(links) > MOST:
            self._links.clear()
            self._missed = True
        self._links.update(links)

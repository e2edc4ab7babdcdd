"""What passes through the network at a host of the lab, byte by byte: to compare both ends of a router."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import dpkt

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role

_ALL = 0x0300  # ETH_P_ALL in network byte order
_RCVBUFFORCE = 33


class Stream(NamedTuple):
    """What a client and a server of one TCP connection have said. `source`: the client's address."""

    source: str
    client: bytes
    server: bytes


class Packet(NamedTuple):
    """A UDP datagram: its ends, and what is in it."""

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes


class _Interface:
    """Reads what passes at the interface of `role`, from `__enter__` to `__exit__`."""

    def __init__(self, lab: Lab, role: Role) -> None:
        with lab.enter(role):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL)
        self._sock.bind(("eth0", 0))
        self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 25)
        self._sock.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sock.close()

    def _listen(self) -> None:
        while True:
            try:
                frame = self._sock.recv(1 << 17)
            except TimeoutError:
                if self._over.is_set():
                    return
                continue
            ip = dpkt.ethernet.Ethernet(frame).data
            if isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
                self._passes(ip)

    def _passes(self, ip: Any) -> None:
        raise NotImplementedError


class UdpTap(_Interface):
    """UDP datagrams."""

    def __init__(self, lab: Lab, role: Role) -> None:
        super().__init__(lab, role)
        self.packets: list[Packet] = []

    def _passes(self, ip: Any) -> None:
        if isinstance(ip.data, dpkt.udp.UDP):
            source, destination = (str(ipaddress.ip_address(host)) for host in (ip.src, ip.dst))
            packet = Packet((source, ip.data.sport), (destination, ip.data.dport), bytes(ip.data.data))
            self.packets.append(packet)


class Tap(_Interface):
    """TCP connections to `port`."""

    def __init__(self, lab: Lab, role: Role, port: int) -> None:
        super().__init__(lab, role)
        self._port = port
        self._said: dict[tuple[bytes, int, bytes, int], dict[int, bytes]] = {}  # by both ends, then by place
        self._begins: dict[tuple[bytes, int, bytes, int], int] = {}

    def streams(self) -> list[Stream]:
        """Return all connections that have said something, in the order in which they began."""
        found = []
        for ends in self._begins:
            if ends[3] == self._port:
                source, port, destination, other = ends
                stream = Stream(
                    str(ipaddress.ip_address(source)),
                    self._joined(ends),
                    self._joined((destination, other, source, port)),
                )
                if stream.client or stream.server:
                    found.append(stream)
        return found

    def _joined(self, ends: tuple[bytes, int, bytes, int]) -> bytes:
        data = bytearray()
        for place, said in sorted(self._said.get(ends, {}).items()):
            assert place <= len(data), "a segment was not seen"
            data[place : place + len(said)] = said
        return bytes(data)

    def _passes(self, ip: Any) -> None:
        segment = ip.data
        if not isinstance(segment, dpkt.tcp.TCP) or self._port not in (segment.sport, segment.dport):
            return
        ends = (ip.src, segment.sport, ip.dst, segment.dport)
        if segment.flags & dpkt.tcp.TH_SYN:
            self._begins[ends] = (segment.seq + 1) & 0xFFFFFFFF
            self._said[ends] = {}
        elif segment.data and ends in self._begins:
            place = (segment.seq - self._begins[ends]) & 0xFFFFFFFF
            if place < 1 << 31:  # else a probe of a keepalive
                known = self._said[ends].get(place, b"")
                self._said[ends][place] = max(known, bytes(segment.data), key=len)


def differences(one: bytes, other: bytes) -> list[tuple[bytes, bytes]]:
    """Return the words in which two messages differ, pair by pair; a word is digits, or anything between digits.
    AssertionError where anything else than digits differs."""
    pairs = [re.findall(rb"[0-9]+|[^0-9]+", data) for data in (one, other)]
    assert len(pairs[0]) == len(pairs[1]), (one, other)
    found = [(a, b) for a, b in zip(*pairs, strict=True) if a != b]
    assert all(a.isdigit() and b.isdigit() for a, b in found), found
    return found

"""Reads and writes capture files by dpkt: UDP datagrams and TCP streams are read from pcap and pcapng, and written as
pcap."""

from __future__ import annotations

import gzip
import ipaddress
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import dpkt

from alg.address import Endpoint
from gateway.model.errors import AlgateError

_ETHERNET, _NULL, _SLL, _SLL2, _LOOP = 1, 0, 113, 276, 108
_RAW = (12, 14, 101, 228, 229)
_VLAN = (0x8100, 0x88A8)
_IP_TYPES = (0x0800, 0x86DD)
_MOST_OF_PACKET = 65000  # bytes of payload in a packet that is written
_MOST_AHEAD = 256  # segments of a stream that may wait for an earlier one


@dataclass(frozen=True, slots=True)
class Piece:
    """A datagram, or the next bytes of a stream. `time` is Unix time; `first`: the stream begins, and its client
    sends."""

    transport: Literal["tcp", "udp"]
    time: float
    source: Endpoint
    destination: Endpoint
    data: bytes
    first: bool = False


class _Stream:
    """One direction of a connection: the next sequence number, and the segments that came too early."""

    def __init__(self, following: int) -> None:
        self.following = following
        self.ahead: dict[int, bytes] = {}

    def take(self, sequence: int, data: bytes) -> bytes:
        """Add a segment, and return the bytes that are in order now."""
        if len(self.ahead) < _MOST_AHEAD:
            self.ahead[sequence] = data
        ready = b""
        while True:
            for start, segment in sorted(self.ahead.items()):
                skip = (self.following - start) & 0xFFFFFFFF
                if skip > len(segment) and skip < 1 << 31:  # all of it came before
                    del self.ahead[start]
                    break
                if skip <= len(segment):
                    del self.ahead[start]
                    ready += segment[skip:]
                    self.following = (start + len(segment)) & 0xFFFFFFFF
                    break
            else:
                return ready


def read(path: Path) -> Iterator[Piece]:
    """Yield all datagrams and stream bytes of a capture, in its order. Fragments and packets that are not IP are left
    out.

    Raises AlgateError for a file that cannot be read.
    """
    streams: dict[tuple[Endpoint, Endpoint], _Stream] = {}
    try:
        with _opened(path) as file:
            reader = dpkt.pcap.UniversalReader(file)
            for when, frame in reader:
                yield from _pieces(float(when), _ip_of(reader.datalink(), bytes(frame)), streams)
    except (OSError, EOFError, zlib.error, ValueError, dpkt.Error) as error:
        raise AlgateError(f"{path}: cannot be read as a capture: {error}") from error


def _opened(path: Path) -> BinaryIO:
    """Open the file, and decompress it if it is compressed by gzip."""
    file = path.open("rb")
    magic = file.read(2)
    file.seek(0)
    return cast(BinaryIO, gzip.open(file)) if magic == b"\x1f\x8b" else file


class Writer:
    """Writes pieces as packets of a pcap file (LINKTYPE_RAW), for Wireshark and similar programs.

    A stream is written as segments that follow each other. Its handshake was not seen, and is not invented.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._writer = dpkt.pcap.Writer(file, snaplen=65535 + 60, linktype=_RAW[1])
        self._file = file
        self._sent: dict[tuple[Endpoint, Endpoint], int] = {}

    def write(self, piece: Piece) -> None:
        """Append a piece. Raises OSError if the file cannot be written."""
        for at in range(0, len(piece.data), _MOST_OF_PACKET):
            data = piece.data[at : at + _MOST_OF_PACKET]
            self._writer.writepkt(self._packet(piece, data), ts=piece.time)
        self._file.flush()

    def _packet(self, piece: Piece, data: bytes) -> bytes:
        source, destination = piece.source.ip, piece.destination.ip
        inner: dpkt.Packet
        if piece.transport == "udp":
            inner = dpkt.udp.UDP(sport=piece.source.port, dport=piece.destination.port, data=data, ulen=8 + len(data))
            protocol = dpkt.ip.IP_PROTO_UDP
        else:
            way = piece.source, piece.destination
            sequence, acknowledged = self._sent.get(way, 1), self._sent.get(way[::-1], 1)
            self._sent[way] = (sequence + len(data)) & 0xFFFFFFFF
            flags = dpkt.tcp.TH_ACK | dpkt.tcp.TH_PUSH
            inner = dpkt.tcp.TCP(
                sport=way[0].port, dport=way[1].port, seq=sequence, ack=acknowledged, flags=flags, win=65535, data=data
            )
            protocol = dpkt.ip.IP_PROTO_TCP
        if source.version == 4:
            packet = dpkt.ip.IP(src=source.packed, dst=destination.packed, p=protocol, data=inner, ttl=64)
            packet.len = 20 + len(bytes(inner))
            return bytes(packet)
        packet6 = dpkt.ip6.IP6(src=source.packed, dst=destination.packed, nxt=protocol, data=inner, hlim=64)
        packet6.extension_hdrs = {}
        packet6.plen = len(bytes(inner))
        return bytes(packet6)


def _ip_of(link: int, frame: bytes) -> bytes:
    """Return the IP packet in a frame; nothing if there is none."""
    if link in _RAW:
        return frame
    if link in (_NULL, _LOOP):
        return frame[4:]
    if link == _SLL2:
        return frame[20:] if int.from_bytes(frame[:2], "big") in _IP_TYPES else b""
    at = {_ETHERNET: 12, _SLL: 14}.get(link)
    if at is None:
        raise ValueError(f"link type {link} is not known")
    kind = int.from_bytes(frame[at : at + 2], "big")
    while kind in _VLAN:
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    return frame[at + 2 :] if kind in _IP_TYPES else b""


def _pieces(when: float, packet: bytes, streams: dict[tuple[Endpoint, Endpoint], _Stream]) -> Iterator[Piece]:
    if not packet or packet[0] >> 4 not in (4, 6):
        return
    try:
        ip = dpkt.ip.IP(packet) if packet[0] >> 4 == 4 else dpkt.ip6.IP6(packet)
    except dpkt.Error:
        return
    inner = ip.data
    if not isinstance(inner, dpkt.udp.UDP | dpkt.tcp.TCP):
        return
    source = Endpoint.of(_address(ip.src), inner.sport)
    destination = Endpoint.of(_address(ip.dst), inner.dport)
    data = bytes(inner.data)
    if isinstance(inner, dpkt.udp.UDP):
        if data and len(data) == inner.ulen - 8:
            yield Piece("udp", when, source, destination, data)
        return
    key = (source, destination)
    if inner.flags & dpkt.tcp.TH_SYN:
        streams[key] = _Stream((inner.seq + 1) & 0xFFFFFFFF)
        if not inner.flags & dpkt.tcp.TH_ACK:
            yield Piece("tcp", when, source, destination, b"", first=True)
        return
    stream = streams.setdefault(key, _Stream(inner.seq))
    ready = stream.take(inner.seq, data) if data else b""
    if ready:
        yield Piece("tcp", when, source, destination, ready)


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))

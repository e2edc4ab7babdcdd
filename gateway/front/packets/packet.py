"""Reads and changes IPv4 and IPv6 packets with UDP in them, as NFQUEUE delivers them. Pure.

Only what can be rewritten safely is read: a whole datagram in one packet. For anything else `parse` says why not.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

from alg.address import Endpoint

LONGEST_WHOLE = 16384
"""Bytes of a packet that the queue delivers; of a longer one only the beginning is seen. No telephone sends more than a
quarter of that in one message; a thousand of them may wait for a verdict."""

LONGEST_DATAGRAM = 65535
TCP, _UDP = 6, 17  # numbers of protocols (IANA)
# Extension headers of IPv6 that may stand before UDP, and have the common form (RFC 6564): next header, length.
_SKIPPED = frozenset({0, 43, 60})
_FRAGMENT6 = 44
_SAFE_MTU = 1280
_DONT_FRAGMENT = 0x4000
_FRAGMENT4 = 0x3FFF  # more fragments, or an offset
_IPV4 = struct.Struct(">BxHxxHxBxx4s4s")  # version and length, total length, flags and offset, protocol, addresses
_H, _HH, _HHH = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">HHH")


class NotWhole(Exception):
    """The packet has to be passed on untouched. `reason` is a stable word: "fragment", "long", "other", "broken"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UdpPacket(NamedTuple):
    """One datagram. `headers` are the bytes before the UDP payload."""

    source: Endpoint
    destination: Endpoint
    payload: bytes
    headers: bytes

    @property
    def version(self) -> int:
        """The IP version: 4 or 6."""
        return self.headers[0] >> 4

    def with_payload(self, payload: bytes) -> bytes:
        """Return the packet's bytes with another payload, and lengths and checksums to match. Raises ValueError if it
        gets too long.

        A packet that has grown beyond what every link carries may be fragmented on its way (IPv4), although its sender
        forbade that, because the sender does not know that it has grown.
        """
        udp_length = 8 + len(payload)
        headers = bytearray(self.headers)
        start = len(headers) - 8
        if start + udp_length > LONGEST_DATAGRAM:
            raise ValueError(f"a datagram of {start + udp_length} bytes")
        _HH.pack_into(headers, start + 4, udp_length, 0)
        if self.version == 4:
            _H.pack_into(headers, 2, start + udp_length)
            if len(payload) > len(self.payload) and start + udp_length > _SAFE_MTU:
                _allow_fragments(headers, payload)
            _H.pack_into(headers, 10, 0)
            _H.pack_into(headers, 10, _checksum(headers[:start]))
            addresses = headers[12:20]
        else:
            _H.pack_into(headers, 4, start - 40 + udp_length)
            addresses = headers[8:40]
        pseudo = addresses + _HH.pack(_UDP, udp_length)
        # 0 would mean "no checksum" (RFC 768).
        _H.pack_into(headers, start + 6, _checksum(pseudo + headers[start:] + payload) or 0xFFFF)
        return bytes(headers) + payload


def parse(data: bytes) -> UdpPacket:
    """Read a packet that begins with its IP header. Raises NotWhole for one that must pass untouched."""
    if not data:
        raise NotWhole("broken")
    version = data[0] >> 4
    try:
        if version == 4:
            source, destination, start, end = _ipv4(data)
        elif version == 6:
            source, destination, start, end = _ipv6(data)
        else:
            raise NotWhole("broken")
        source_port, destination_port, length = _HHH.unpack_from(data, start)
    except struct.error:
        raise NotWhole("broken") from None
    if end > len(data):
        raise NotWhole("long" if len(data) >= LONGEST_WHOLE else "broken")
    # What lies behind the datagram but in the packet (RFC 9868) would be lost.
    if length < 8 or start + length != end:
        raise NotWhole("broken")
    return UdpPacket(
        _endpoint(source, source_port),
        _endpoint(destination, destination_port),
        data[start + 8 : end],
        data[: start + 8],
    )


def ends_of(data: bytes, protocol: int = _UDP) -> tuple[Endpoint, Endpoint]:
    """Source and destination of a packet of UDP (or TCP), of which the first bytes are enough. Raises NotWhole."""
    try:
        source, destination, start, _ = (_ipv6 if data[:1] >= b"\x60" else _ipv4)(data, protocol)
        source_port, destination_port = _HH.unpack_from(data, start)
    except struct.error:
        raise NotWhole("broken") from None
    return _endpoint(source, source_port), _endpoint(destination, destination_port)


@lru_cache(16384)
def _endpoint(packed: bytes, port: int) -> Endpoint:
    return Endpoint(str(ipaddress.ip_address(packed)), port)


def is_tcp(data: bytes) -> bool:
    """Whether TCP comes right behind the IP header."""
    at = 6 if data[:1] >= b"\x60" else 9
    return len(data) > at and data[at] == TCP


def _ipv4(data: bytes, wanted: int = _UDP) -> tuple[bytes, bytes, int, int]:
    """Source, destination, where UDP (or `wanted`) begins, where the packet ends."""
    first, total, flags, protocol, source, destination = _IPV4.unpack_from(data)
    start = (first & 15) * 4
    if start < 20 or total < start + 8:
        raise NotWhole("broken")
    if flags & _FRAGMENT4:
        raise NotWhole("fragment")
    if protocol != wanted:
        raise NotWhole("other")
    return source, destination, start, total


def _ipv6(data: bytes, wanted: int = _UDP) -> tuple[bytes, bytes, int, int]:
    length, following = struct.unpack_from(">HB", data, 4)
    start, end = 40, 40 + length
    while following in _SKIPPED:
        following, units = struct.unpack_from(">BB", data, start)
        start += 8 + 8 * units
    if following == _FRAGMENT6:
        raise NotWhole("fragment")
    if following != wanted:
        raise NotWhole("other")
    return data[8:24], data[24:40], start, end


def _allow_fragments(headers: bytearray, payload: bytes) -> None:
    identification, flags = struct.unpack_from(">HH", headers, 4)
    if flags & _DONT_FRAGMENT:
        # Its identification may be 0 in every packet (RFC 6864), which fragments must not share.
        identification = identification or zlib.crc32(payload) & 0xFFFF
        struct.pack_into(">HH", headers, 4, identification, flags & ~_DONT_FRAGMENT)


def _checksum(data: bytes | bytearray) -> int:
    """Compute the Internet checksum (RFC 1071) of bytes that are not all zeros: with an end-around carry numbers are
    added modulo 0xFFFF, and so is one large number of sixteen-bit digits."""
    if len(data) % 2:
        data = data + b"\0"
    return -int.from_bytes(data, "big") % 0xFFFF

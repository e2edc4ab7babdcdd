"""The codec of packets: what is read is what is written, and what is not whole is left alone."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.front.packets.packet import LONGEST_WHOLE, NotWhole, UdpPacket, parse

A4, B4 = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.10", 5060)
A6, B6 = Endpoint("fd00:56::10", 5060), Endpoint("2001:db8:113::10", 5060)


def packet4(payload: bytes, flags: int = 0x4000, options: bytes = b"", identification: int = 0) -> bytes:
    start = 20 + len(options)
    length = 8 + len(payload)
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | start // 4, 0, start + length, identification, flags, 64, 17, 0, A4.ip.packed,
        B4.ip.packed,
    )  # fmt: skip
    return head + options + struct.pack(">HHHH", A4.port, B4.port, length, 0) + payload


def packet6(payload: bytes, extension: bytes = b"", following: int = 17) -> bytes:
    length = 8 + len(payload)
    head = struct.pack(
        ">IHBB16s16s", 6 << 28, len(extension) + length, following, 64, A6.ip.packed, B6.ip.packed
    )  # fmt: skip
    return head + extension + struct.pack(">HHHH", A6.port, B6.port, length, 0) + payload


def checksum_of(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def check_sums(packet: UdpPacket, data: bytes) -> None:
    start = len(packet.headers) - 8
    if packet.version == 4:
        assert checksum_of(data[:start]) == 0xFFFF
    udp = data[start:]
    pseudo = packet.source.ip.packed + packet.destination.ip.packed + struct.pack(">HH", 17, len(udp))
    assert checksum_of(pseudo + udp) == 0xFFFF
    assert udp[6:8] != b"\0\0"


@given(payload=st.binary(max_size=2000), other=st.binary(max_size=2000), six=st.booleans())
def test_another_payload_comes_back_with_right_lengths_and_checksums(payload: bytes, other: bytes, six: bool) -> None:
    packet = parse(packet6(payload) if six else packet4(payload))
    assert (packet.source, packet.destination) == ((A6, B6) if six else (A4, B4))
    assert packet.payload == payload
    data = packet.with_payload(other)
    check_sums(packet, data)
    again = parse(data)
    assert (again.source, again.destination, again.payload) == (packet.source, packet.destination, other)


def test_options_and_extension_headers_stay() -> None:
    options = b"\x94\x04\0\0"
    data = parse(packet4(b"one", options=options)).with_payload(b"longer")
    assert data[20:24] == options
    assert parse(data).payload == b"longer"
    extension = b"\x11\0\x01\x04\0\0\0\0"
    data = parse(packet6(b"one", extension, 0)).with_payload(b"longer")
    assert data[40:48] == extension
    assert parse(data).payload == b"longer"


def test_a_packet_that_grew_may_be_fragmented() -> None:
    grown = parse(packet4(b"x" * 1400)).with_payload(b"x" * 1450)
    identification, flags = struct.unpack_from(">HH", grown, 4)
    assert flags == 0
    assert identification != 0
    for data in (
        parse(packet4(b"x" * 1400)).with_payload(b"y" * 1400),
        parse(packet4(b"x")).with_payload(b"y" * 9),
    ):
        assert struct.unpack_from(">HH", data, 4) == (0, 0x4000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packet4(b"x", flags=0x2000), "fragment"),
        (packet4(b"x", flags=0x0010), "fragment"),
        (packet6(b"x", b"\x11\0\0\x01\0\0\0\1", 44), "fragment"),
        (packet4(b"x" * 30000)[:LONGEST_WHOLE], "long"),
        (packet6(b"x" * 30000)[:LONGEST_WHOLE], "long"),
        (packet4(b"xyz")[:-1], "broken"),
        (packet4(b"xyz")[:12], "broken"),
        (packet6(b"", following=6), "other"),
        (packet4(b"")[:9] + b"\x06" + packet4(b"")[10:], "other"),
        (b"", "broken"),
        (b"\x50" * 60, "broken"),
        (b"\x41" + packet4(b"x")[1:], "broken"),
    ],
)
def test_what_is_not_whole(data: bytes, reason: str) -> None:
    with pytest.raises(NotWhole) as found:
        parse(data)
    assert found.value.reason == reason


def test_a_trailer_behind_the_datagram_is_not_lost() -> None:
    data = bytearray(packet4(b"abcdef"))
    struct.pack_into(">H", data, 24, 8 + 3)
    with pytest.raises(NotWhole):
        parse(bytes(data))


def test_too_long() -> None:
    with pytest.raises(ValueError, match="datagram"):
        parse(packet4(b"")).with_payload(b"x" * 65510)


@given(st.binary(max_size=200))
def test_never_another_exception(data: bytes) -> None:
    try:
        packet = parse(data)
    except NotWhole:
        return
    assert ipaddress.ip_address(packet.source.host)

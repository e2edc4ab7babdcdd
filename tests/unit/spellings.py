"""IPv6 addresses that carry an IPv4 address, made for tests by the words of the RFCs, bit by bit."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

RFC6052 = {32: 32, 40: 24, 48: 16, 56: 8, 64: 0}  # length of the prefix: bits of the IPv4 address before octet 8


def translated(prefix: ipaddress.IPv6Network, address: ipaddress.IPv4Address) -> ipaddress.IPv6Address:
    """RFC 6052 section 2.2: behind the prefix, but bits 64 to 71 stay zero."""
    bits = f"{int(prefix.network_address):0128b}"[: prefix.prefixlen] + f"{int(address):032b}"
    if prefix.prefixlen < 96:
        bits = bits[:64] + "0" * 8 + bits[64:]
    return ipaddress.IPv6Address(int(bits.ljust(128, "0"), 2))


def spellings(address: ipaddress.IPv4Address) -> Iterator[tuple[str, ipaddress.IPv6Address]]:
    """By name, all that need no configuration."""
    yield "mapped", ipaddress.IPv6Address(f"::ffff:{address}")
    yield "compatible", ipaddress.IPv6Address(f"::{address}")
    yield "SIIT", ipaddress.IPv6Address(f"::ffff:0:{address}")
    yield "NAT64", ipaddress.IPv6Address(f"64:ff9b::{address}")
    for length in (48, 56, 64, 96):
        prefix = ipaddress.IPv6Network(f"64:ff9b:1::/{length}")
        yield f"local NAT64/{length}", translated(prefix, address)
    yield "local NAT64 elsewhere", translated(ipaddress.IPv6Network("64:ff9b:1:fe::/96"), address)
    high, low = int(address) >> 16, int(address) & 0xFFFF
    yield "6to4", ipaddress.IPv6Address(f"2002:{high:x}:{low:x}::1")
    yield "Teredo server", ipaddress.IPv6Address(f"2001:0:{high:x}:{low:x}:8000:f227:3fff:fdd2")
    yield "Teredo client", ipaddress.IPv6Address(f"2001:0:4136:e378:8000:f227:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}")
    for identifier in ("0", "200"):
        yield f"ISATAP {identifier}", ipaddress.IPv6Address(f"2001:db8:71:5:{identifier}:5efe:{address}")

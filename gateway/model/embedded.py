"""IPv4 addresses that IPv6 addresses carry: a rule for the one must not be passed by in the clothes of the other."""

from __future__ import annotations

import ipaddress

from alg.address import Address, canonical

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052 section 2.1
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1, deprecated


def seen_through(address: Address) -> tuple[Address, ...]:
    """The address itself, an IPv4-mapped one as IPv4, and behind it the IPv4 addresses to which its packets go on.

    Those are: the one in a NAT64 (64:ff9b::/96) or 6to4 (2002::/16) address, the server and the client in a Teredo
    address (2001::/32), the one in an IPv4-compatible address. Whoever permits `address` must permit them all.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    ip = canonical(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    if ip.sixtofour is not None:
        return (ip, ip.sixtofour)
    if ip.teredo is not None:
        return (ip, *ip.teredo)
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):  # not :: and ::1
        return (ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return (ip,)

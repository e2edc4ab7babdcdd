"""Names and addresses of hosts: one spelling for each, and the IPv4 addresses that IPv6 addresses embed.

A host has one spelling, so that the rules judge the very name that is then looked up. A rule for an IPv4 address must
also apply when that address is embedded in an IPv6 one.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence

from alg.address import Address, canonical

MAX_LENGTH = 253

# What DNS carries is a name (RFC 2181, section 11), whatever RFC 952 says of host names: labels begin and end with
# hyphens, and have underscores, or what else a URL may have in its host (RFC 3986, 3.2.2). Left out is only what means
# something where names are written: in zone files, in lists, in addresses.
_LABEL = re.compile(r"[a-z0-9_!$&'*+=~-]{1,63}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_NUMBERS = re.compile(r"[0-9.]+", re.ASCII)
# A number of an IPv4 address that can be read in one way only: 010 is 8 to some and 10 to others.
_ONE_WAY = re.compile(r"0|[1-9][0-9]{0,9}|0x[0-9a-f]{1,8}", re.ASCII)

# Labels with a letter that IDNA of 2003 made another of, and that browsers and registries keep (RFC 5894, 7.2).
_KEPT = re.compile("[^.\u3002\uff0e\uff61]*[ßς][^.\u3002\uff0e\uff61]*")
_DOT = re.compile("[.\u3002\uff0e\uff61]")


def _as_it_is(label: re.Match[str]) -> str:
    """Return a label in ASCII. Raises UnicodeError if it has a character that stands for a dot among others."""
    plain = unicodedata.normalize("NFKC", label[0])
    if _DOT.search(plain):
        raise UnicodeError(f"{label[0]!r} is more than one label")
    return "xn--" + plain.encode("punycode").decode()


def canonical_name(text: str) -> str:
    """Return a host name in lower case ASCII (IDNA) without the last dot. Raises ValueError if `text` cannot be a host
    name.

    Text of numbers alone, which a C library may read as an address (127.1, 0x7f000001), is no host name, nor is a name
    with the escapes of zone files (`ex\\097mple.com`), which two readers might read differently.
    """
    name = text.lower()
    if "\\" in text:
        raise ValueError(f"{text!r} is not a host name")
    if not text.isascii():
        import dns.exception  # here, as most processes never need it, and it takes long to load
        import dns.name

        try:
            name = dns.name.from_text(_KEPT.sub(_as_it_is, name), None).to_text().lower()
        except (dns.exception.DNSException, UnicodeError) as error:
            raise ValueError(f"{text!r} is not a host name: {error}") from None
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_LENGTH or not all(map(_LABEL.fullmatch, labels)) or all(map(_NUMBER.fullmatch, labels)):
        raise ValueError(f"{text!r} is not a host name")
    return name


def configured_name(text: str) -> str:
    """Return a host name of the configuration as `canonical_name` does. Raises ValueError for a `*` in it as well: a
    client may ask DNS for such a label, but in a rule it was meant as a wildcard."""
    name = canonical_name(text)
    if "*" in name:
        raise ValueError(f"{text!r} is not a host name: only in a rule `*.` may begin one, and means all below it")
    return name


def parse_address(text: str) -> Address:
    """Parse the address that a client sent; an IPv4-mapped one becomes IPv4. Raises ValueError for a name, and for an
    address with a zone, because the links of this host mean nothing to its clients."""
    ip = canonical(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        raise ValueError("a zone has no meaning for a client")
    return ip


def read_host(text: str) -> str:
    """Return the one spelling of the host that a client names: the canonical text of an address, also of one in
    brackets (as in a URI, RFC 3986 section 3.2.2) or as the C library reads it (127.1, 0x7f000001), or a name as
    `canonical_name` returns it. Text that is neither, or that may be two addresses, is returned as it is: it will not
    be found, and the client is told so."""
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in address or _NUMBERS.fullmatch(address):
        try:
            return str(parse_address(address))
        except ValueError:
            return text if ":" in address else _read_numbers(address) or text
    try:
        return canonical_name(text)
    except ValueError:
        return _read_numbers(address) or text


def _read_numbers(text: str) -> str | None:
    """Return the IPv4 address that inet_aton(3) reads in `text`: one to four numbers, of which the last one stands for
    all bytes that are left. None if it reads none, or others would read another one."""
    numbers = text.lower().split(".")
    if len(numbers) > 4 or not all(map(_ONE_WAY.fullmatch, numbers)):
        return None
    *single, last = (int(number, 16 if number.startswith("0x") else 10) for number in numbers)
    left = 4 - len(single)
    if any(byte > 255 for byte in single) or last >> 8 * left:
        return None
    return str(ipaddress.IPv4Address(bytes(single) + last.to_bytes(left, "big")))


def name_of(host: str) -> str | None:
    """Return `host`, as spelled by `read_host`, if it is a name; None for an address, and for what cannot be a name."""
    if ":" in host or _NUMBERS.fullmatch(host):
        return None
    try:
        return canonical_name(host)
    except ValueError:
        return None


TRANSLATION_LENGTHS = (32, 40, 48, 56, 64, 96)
"""Lengths that a prefix of NAT64 may have (RFC 6052 section 2.2)."""

_LOW = 0xFFFFFFFF
_LOCAL_TRANSLATION = 0x64FF9B0001  # 64:ff9b:1::/48 (RFC 8215)
# An IPv4 address whose packets go nowhere (RFC 1122 section 3.2.1.3), so no reading of an address that means anything.
_NOWHERE = 1 << 24


def seen_through(address: Address, nat64: Sequence[ipaddress.IPv6Network] = ()) -> tuple[Address, ...]:
    """Return the address itself (an IPv4-mapped one as IPv4) and the IPv4 addresses that it embeds, to which its
    packets may go on. Whoever permits `address` must permit them all. A zone is ignored.

    These embed an IPv4 address: prefixes of NAT64, which are `nat64` (RFC 6052 section 2.2), 64:ff9b::/96 and prefixes
    within 64:ff9b:1::/48 (RFC 8215; only the network knows how long such a prefix is, so all readings count); 6to4
    (2002::/16, RFC 3056); ISATAP (RFC 5214); IPv4-compatible and IPv4-translated addresses (RFC 2765); Teredo, which
    embeds those of the server and the client (2001::/32, RFC 4380).
    """
    ip = canonical(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    number = int(ip)
    if ip.scope_id is not None:
        ip = ipaddress.IPv6Address(number)
    found = list(_carried(number, nat64))
    return (ip, *map(ipaddress.IPv4Address, found)) if found else (ip,)


def _carried(number: int, nat64: Sequence[ipaddress.IPv6Network]) -> Sequence[int]:
    """Return the IPv4 addresses in the IPv6 address `number`."""
    found: list[int] = []
    if number >> 112 == 0x2002:
        found.append(number >> 80 & _LOW)
    elif number >> 96 == 0x20010000:
        found += (number >> 64 & _LOW, ~number & _LOW)
    elif number >> 32 in (0x64FF9B << 64, 0xFFFF0000) or (number >> 32 == 0 and number > 1):  # not :: and ::1
        found.append(number & _LOW)
    elif number >> 80 == _LOCAL_TRANSLATION:
        known = [prefix.prefixlen for prefix in nat64 if _is_in(number, prefix)]
        readings = [_translated(number, length) for length in known or TRANSLATION_LENGTHS[2:]]
        found += [reading for reading in readings if known or reading >= _NOWHERE]
        nat64 = ()
    for prefix in nat64:
        if _is_in(number, prefix):
            found.append(_translated(number, prefix.prefixlen))
    if number >> 32 & 0xFDFFFFFF == 0x5EFE:  # whatever the prefix is
        found.append(number & _LOW)
    return found


def _is_in(number: int, prefix: ipaddress.IPv6Network) -> bool:
    return number >> 128 - prefix.prefixlen == int(prefix.network_address) >> 128 - prefix.prefixlen


def _translated(number: int, length: int) -> int:
    """Return the IPv4 address behind a prefix of that length (RFC 6052 section 2.2). Bits 64 to 71 are never part of
    it."""
    if length == 96:
        return number & _LOW
    behind = length - 32  # bits of it that stand behind those
    before = number >> 64 & (1 << 64 - length) - 1
    return before << behind | number >> 56 - behind & (1 << behind) - 1

"""Endpoints, and the strict grammars in which protocols write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address:
    """The address that `text` is, remembered: the same few come with every connection. ValueError for a name."""
    return ipaddress.ip_address(text)


class Endpoint(NamedTuple):
    """An IP address and a port (0 to 65535). `host` is the canonical text of an address, never a name.

    A tuple, since it is hashed and compared several times for each message: as a dataclass that was Python code.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str | Address, port: int) -> Endpoint:
        """Make an endpoint of any valid spelling. ValueError for a name, a bad address or a bad port."""
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not between 0 and 65535")
        return cls(str(ipaddress.ip_address(host)), port)

    @property
    def ip(self) -> Address:
        return parse_ip(self.host)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=4096)
def canonical(host: str | Address) -> Address:
    """The address itself; for an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) the IPv4 one. ValueError for a name."""
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


# --- FTP: RFC 959 (PORT, 227) and RFC 2428 (EPRT, 229) ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExtendedPort:
    """The argument of EPRT: an endpoint, and the delimiter it was written with (one byte)."""

    endpoint: Endpoint
    delimiter: bytes


@dataclass(frozen=True, slots=True)
class FoundEndpoint:
    """An endpoint that stands in `line[start:end]`."""

    endpoint: Endpoint
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundPort:
    """A port that stands in `line[start:end]`."""

    port: int
    start: int
    end: int


_SIX = rb"[0-9]{1,3}(?:,[0-9]{1,3}){5}"
_SIX_ONLY = re.compile(_SIX)
# A number before or behind, a sign or a further comma would make it something else than six numbers.
_SIX_IN_TEXT = re.compile(rb"(?<![0-9,.+-])" + _SIX + rb"(?![0-9,]|\.[0-9])")
_EPSV_IN_TEXT = re.compile(rb"\(([!-~])\1\1([0-9]{1,5})\1\)")
_FAMILIES: dict[bytes, type[Address]] = {b"1": ipaddress.IPv4Address, b"2": ipaddress.IPv6Address}
_IP_TEXT = re.compile(rb"[0-9A-Fa-f:.]+")  # no zone ("%eth0"), no other script's digits
_PORT_TEXT = re.compile(rb"[0-9]{1,5}")


def parse_port_argument(argument: bytes) -> Endpoint:
    """Read `h1,h2,h3,h4,p1,p2` (RFC 959, 5.3.2): all of `argument`, numbers of 1 to 3 digits, each 0 to 255.

    ValueError for anything else.
    """
    if not _SIX_ONLY.fullmatch(argument):
        raise ValueError("not six numbers with commas between them")
    numbers = [int(number) for number in argument.split(b",")]
    if max(numbers) > 255:
        raise ValueError("a number is above 255")
    return Endpoint(".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5])


def format_port_argument(endpoint: Endpoint) -> bytes:
    """Write `h1,h2,h3,h4,p1,p2`. ValueError for an IPv6 address, which cannot be written so."""
    if endpoint.version != 4:
        raise ValueError(f"{endpoint} is not an IPv4 endpoint")
    return f"{endpoint.host.replace('.', ',')},{endpoint.port >> 8},{endpoint.port & 255}".encode()


def parse_eprt_argument(argument: bytes) -> ExtendedPort:
    """Read `|1|a.b.c.d|port|` or `|2|x:y::z|port|`, the delimiter being any of the characters 33 to 126 (RFC 2428, 2).

    ValueError for anything else, as for an address that is not of the family named.
    """
    delimiter = argument[:1]
    if not b"!" <= delimiter <= b"~":
        raise ValueError("no delimiter of the characters 33 to 126")
    fields = argument.split(delimiter)
    if len(fields) != 5 or fields[0] or fields[4]:
        raise ValueError("not three fields between delimiters")
    family = _FAMILIES.get(fields[1])
    if family is None:
        raise ValueError("the family is neither 1 nor 2")
    if not _IP_TEXT.fullmatch(fields[2]) or not _PORT_TEXT.fullmatch(fields[3]):
        raise ValueError("not an address and a port")
    return ExtendedPort(Endpoint.of(family(fields[2].decode("ascii")), int(fields[3])), delimiter)


def format_eprt_argument(endpoint: Endpoint, delimiter: bytes = b"|") -> bytes:
    """Write the argument of EPRT with `delimiter` (one byte). ValueError where the delimiter occurs in the text."""
    family = "2" if endpoint.version == 6 else "1"
    fields = [family.encode(), endpoint.host.encode(), str(endpoint.port).encode()]
    if any(delimiter in field for field in fields):
        raise ValueError(f"{endpoint} cannot be written with the delimiter {delimiter!r}")
    return delimiter + delimiter.join(fields) + delimiter


def find_pasv_endpoint(line: bytes) -> FoundEndpoint:
    """Find the endpoint of a 227 reply line, with or without parentheses and other text.

    RFC 959, 4.1.2 shows no strict form; RFC 1123, 4.1.2.6 asks to search for the digits.
    ValueError where there is none, more than one, or a number above 255.
    """
    found = list(_SIX_IN_TEXT.finditer(line))
    if len(found) != 1:
        raise ValueError(f"{len(found)} endpoints in the reply")
    return FoundEndpoint(parse_port_argument(found[0][0]), *found[0].span())


def find_epsv_port(line: bytes) -> FoundPort:
    """Find the port of a 229 reply line, `(|||port|)` with any delimiter of the characters 33 to 126 (RFC 2428, 3).

    ValueError where there is none, more than one, or the port is above 65535.
    """
    found = list(_EPSV_IN_TEXT.finditer(line))
    if len(found) != 1:
        raise ValueError(f"{len(found)} ports in the reply")
    port = int(found[0][2])
    if port > 65535:
        raise ValueError("the port is above 65535")
    return FoundPort(port, *found[0].span(2))

"""The endpoints in FTP lines: RFC 959 (PORT, 227) and RFC 2428 (EPRT, 229).

What clients write (PORT, EPRT) is read strictly, because it opens a port of an inside host. What servers write (227,
229) is read as clients have always read it (RFC 1123, 4.1.2.6: search for the digits), as long as only one meaning is
possible. Each search is linear in the length of the line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from alg.address import Address, Endpoint


@dataclass(frozen=True, slots=True)
class ExtendedPort:
    """The argument of EPRT: an endpoint, and the delimiter with which it was written (one byte)."""

    endpoint: Endpoint
    delimiter: bytes


@dataclass(frozen=True, slots=True)
class FoundEndpoint:
    """An endpoint, as it stands in `line[start:end]`."""

    endpoint: Endpoint
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundPort:
    """A port, as it stands in `line[start:end]`."""

    port: int
    start: int
    end: int


_SIX_ONLY = re.compile(rb"[0-9]{1,3}(?:,[0-9]{1,3}){5}")
_FAMILIES: dict[bytes, type[Address]] = {b"1": ipaddress.IPv4Address, b"2": ipaddress.IPv6Address}
_IP_TEXT = re.compile(rb"[0-9A-Fa-f:.]+")  # no zone ("%eth0"), no other script's digits
_PORT_TEXT = re.compile(rb"[0-9]{1,5}")

# In replies a number may have a sign (servers that print bytes as signed ones) and blanks around the commas. What
# stands beside it must not make it another number: a digit, a sign, a digit and a dot.
_NUMBER = rb"-?[0-9]{1,3}"
_COMMA = rb"[ \t]{0,4},[ \t]{0,4}"
_BEFORE = rb"(?<![0-9+-])(?<![0-9]\.)"
_BEHIND = rb"(?![0-9]|\.[0-9])"
_SIX_IN_TEXT = re.compile(_BEFORE + rb"(" + _NUMBER + rb"(?:" + _COMMA + _NUMBER + rb"){5})" + _BEHIND)
# Some write the address of IPv6, and then the two numbers of the port.
_IPV6_IN_TEXT = re.compile(rb"(?<![0-9A-Za-z:.+-])([0-9A-Fa-f:.]{2,45}),([0-9]{1,3}),([0-9]{1,3})(?![0-9]|\.[0-9])")
_MORE_BEFORE = re.compile(rb"[0-9][ \t]*,[ \t]*\Z")  # a comma behind a word ends a sentence
_MORE_BEHIND = re.compile(rb"[ \t]*,[ \t]*[0-9+-]")
_EPSV_IN_TEXT = re.compile(rb"\(([!-~])\1\1([0-9]{1,5})\1\)")
# Some fill in what EPRT has there, though the RFC says that it is left out; only the port counts.
_EPSV_FILLED = re.compile(rb"\(\|[12]?\|([0-9A-Fa-f:.]{0,45})\|([0-9]{1,5})\|\)")
# Without the parentheses, or with blanks within them: then the delimiter is the common one.
_EPSV_LOOSE = re.compile(rb"(?<!\|)\|[ \t]{0,4}\|[ \t]{0,4}\|[ \t]{0,4}([0-9]{1,5})[ \t]{0,4}\|(?!\|)")


def parse_port_argument(argument: bytes) -> Endpoint:
    """Read `h1,h2,h3,h4,p1,p2` (RFC 959, 5.3.2): all of `argument`, numbers of 1 to 3 digits, each 0 to 255.

    Raises ValueError for anything else.
    """
    if not _SIX_ONLY.fullmatch(argument):
        raise ValueError("not six numbers with commas between them")
    numbers = [int(number) for number in argument.split(b",")]
    if max(numbers) > 255:
        raise ValueError("a number is above 255")
    return _endpoint(numbers)


def format_port_argument(endpoint: Endpoint) -> bytes:
    """Write `h1,h2,h3,h4,p1,p2`. Raises ValueError for an IPv6 address, which cannot be written like this."""
    if endpoint.version != 4:
        raise ValueError(f"{endpoint} is not an IPv4 endpoint")
    return f"{endpoint.host.replace('.', ',')},{endpoint.port >> 8},{endpoint.port & 255}".encode()


def parse_eprt_argument(argument: bytes) -> ExtendedPort:
    """Read `|1|a.b.c.d|port|` or `|2|x:y::z|port|`, where the delimiter may be any of the characters 33 to 126 (RFC
    2428, 2).

    Raises ValueError for anything else, including an address that is not of the family named.
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
    """Write the argument of EPRT with `delimiter` (one byte). Raises ValueError if the delimiter occurs in the text."""
    family = "2" if endpoint.version == 6 else "1"
    fields = [family.encode(), endpoint.host.encode(), str(endpoint.port).encode()]
    if any(delimiter in field for field in fields):
        raise ValueError(f"{endpoint} cannot be written with the delimiter {delimiter!r}")
    return delimiter + delimiter.join(fields) + delimiter


def find_pasv_endpoint(line: bytes) -> FoundEndpoint:
    """Find the endpoint of a 227 reply line, with or without parentheses and other text.

    RFC 959, 4.1.2 shows no strict form; RFC 1123, 4.1.2.6 asks to search for the digits. Numbers of -128 to -1 are read
    modulo 256. Raises ValueError if there is none, more than one, or a number beyond -128 to 255.
    """
    found = [match for match in _SIX_IN_TEXT.finditer(line) if not _goes_on(line, match)]
    if found:
        if len(found) != 1:
            raise ValueError(f"{len(found)} endpoints in the reply")
        numbers = [int(number) for number in found[0][1].split(b",")]
        if not all(-128 <= number <= 255 for number in numbers):
            raise ValueError("a number is not between -128 and 255")
        return FoundEndpoint(_endpoint([number % 256 for number in numbers]), *found[0].span())
    sixes = [match for match in _IPV6_IN_TEXT.finditer(line) if b":" in match[1] and not _goes_on(line, match)]
    if len(sixes) != 1:
        raise ValueError(f"{len(sixes)} endpoints in the reply")
    host, high, low = sixes[0].groups()
    if max(int(high), int(low)) > 255:
        raise ValueError("a number is above 255")
    address = ipaddress.IPv6Address(host.decode("ascii"))
    return FoundEndpoint(Endpoint.of(address, int(high) * 256 + int(low)), *sixes[0].span())


def find_epsv_port(line: bytes) -> FoundPort:
    """Find the port of a 229 reply line, `(|||port|)` with any delimiter of the characters 33 to 126 (RFC 2428, 3).

    `|||port|` may also stand without parentheses and have blanks in it, and `(|1|address|port|)` name what has to be
    left out: clients read the port, and go to the host of the control connection. Raises ValueError if there is none,
    more than one, or the port is above 65535.
    """
    number = 2
    found = list(_EPSV_IN_TEXT.finditer(line))
    if not found:
        found = list(_EPSV_FILLED.finditer(line))
    if not found:
        number = 1
        found = list(_EPSV_LOOSE.finditer(line))
    if len(found) != 1:
        raise ValueError(f"{len(found)} ports in the reply")
    port = int(found[0][number])
    if port > 65535:
        raise ValueError("the port is above 65535")
    return FoundPort(port, *found[0].span(number))


def _endpoint(numbers: list[int]) -> Endpoint:
    return Endpoint(".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5])


def _goes_on(line: bytes, match: re.Match[bytes]) -> bool:
    """Whether a comma makes these six numbers part of a longer sequence."""
    return (
        _MORE_BEHIND.match(line, match.end()) is not None
        or _MORE_BEFORE.search(line[max(0, match.start() - 8) : match.start()]) is not None
    )

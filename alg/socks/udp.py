"""The wire format of datagrams of a SOCKS 5 UDP association (RFC 1928, section 7), without a socket and without a
clock."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from alg.address import Endpoint, canonical
from alg.socks.socks5 import AddressType, SocksError, decode_counted_name, encode_address

MAX_HEADER = 262  # a name of 255 bytes
MAX_ADDRESS_HEADER = 22  # what `encode_header` makes at most
MAX_DATA = 65507  # bytes that a UDP datagram over IPv4 can hold
REASSEMBLY_TIMEOUT = 5.0  # seconds for all fragments of a datagram: the shortest that section 7 allows

_END = 0x80  # the bit of FRAG that says: this is the last fragment


class Header(NamedTuple):
    """The header of a datagram. `fragment` is FRAG as it stands. `host` is the canonical text of an address, or a
    name."""

    fragment: int
    host: str
    port: int


def header_size(datagram: bytes | memoryview) -> int:
    """Return how many bytes the header takes, by its address type; 0 if there is no whole header of a known type."""
    if len(datagram) < 5:
        return 0
    match datagram[3]:
        case AddressType.IPV4:
            size = 10
        case AddressType.IPV6:
            size = 22
        case AddressType.NAME:
            size = 7 + datagram[4]
        case _:
            return 0
    return size if len(datagram) >= size else 0


def parse_header(datagram: bytes) -> tuple[Header, int]:
    """Read RSV FRAG ATYP DST.ADDR DST.PORT. Returns the header, and how many bytes it takes; the data is behind them.

    Raises SocksError if it is cut off or of an unknown type, if RSV is not zero, or for a name that cannot be one. Such
    a datagram is dropped; there is no answer to it.
    """
    size = header_size(datagram)
    if not size:
        raise SocksError(None, "no whole header")
    if datagram[:2] != b"\0\0":
        raise SocksError(None, "RSV is not zero")
    match datagram[3]:
        case AddressType.IPV4:
            host = str(IPv4Address(datagram[4:8]))
        case AddressType.IPV6:
            host = str(canonical(IPv6Address(datagram[4:20])))
        case _:
            host = decode_counted_name(datagram[5 : size - 2])
    return Header(datagram[2], host, int.from_bytes(datagram[size - 2 : size], "big")), size


def encode_header(source: Endpoint) -> bytes:
    """Encode the header of an unfragmented datagram that came from `source`; at most MAX_ADDRESS_HEADER bytes."""
    kind = AddressType.IPV6 if source.version == 6 else AddressType.IPV4
    return bytes((0, 0, 0, kind)) + source.ip.packed + source.port.to_bytes(2, "big")


def encode_target(host: str, port: int, fragment: int = 0) -> bytes:
    """Encode the header of a datagram for a host (an address or a name). Raises ValueError for a name that does not fit
    into one."""
    return bytes((0, 0, fragment)) + encode_address(host) + port.to_bytes(2, "big")


def fragments(host: str, port: int, data: bytes, size: int) -> list[bytes]:
    """Return the datagrams that carry `data`, with at most `size` bytes of it in each. A single one is no fragment.

    Raises ValueError if there would be more than 127, which is the number of positions.
    """
    if len(data) <= size:
        return [encode_target(host, port) + data]
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    if len(parts) >= _END:
        raise ValueError(f"{len(data)} bytes do not fit into {_END - 1} fragments of {size}")
    last = len(parts)
    return [
        encode_target(host, port, number | _END if number == last else number) + part
        for number, part in enumerate(parts, 1)
    ]


class Reassembly:
    """The REASSEMBLY QUEUE and REASSEMBLY TIMER of one association (RFC 1928, section 7).

    There is one sequence at a time, with its fragments in order: a gap can never be filled, because a lower position
    abandons the queue, so a gap abandons it at once. Holds at most MAX_DATA bytes. Times are monotonic seconds.
    """

    def __init__(self, timeout: float = REASSEMBLY_TIMEOUT) -> None:
        self._timeout = timeout
        self._parts: list[bytes] = []
        self._size = 0
        self._target = ("", 0)
        self._until = 0.0

    def add(self, header: Header, data: bytes, now: float) -> bytes | None:
        """Take one datagram. Returns the whole data once it is complete (of a standalone one at once), None before
        that."""
        if self._parts and now >= self._until:
            self.abandon()
        if header.fragment == 0:  # less than any position: what was queued is abandoned
            self.abandon()
            return data
        position, target = header.fragment & ~_END, (header.host, header.port)
        if self._parts and position == len(self._parts) and target == self._target and data == self._parts[-1]:
            return None  # the network has doubled it
        if position <= len(self._parts) or target != self._target:
            self.abandon()
        if position != len(self._parts) + 1 or self._size + len(data) > MAX_DATA:
            self.abandon()
            return None
        if position == 1:
            self._until = now + self._timeout
            self._target = target
        self._parts.append(data)
        self._size += len(data)
        if not header.fragment & _END:
            return None
        whole = b"".join(self._parts)
        self.abandon()
        return whole

    @property
    def pending(self) -> bool:
        """Whether fragments are queued."""
        return bool(self._parts)

    def abandon(self) -> None:
        """Reinitialize the queue, as a standalone datagram does."""
        self._parts.clear()
        self._size = 0

"""A lease as elements of the table `iptables/algate.nft`, and back. Pure.

The lease rides in an element's user data, as a comment that `nft list table` shows: "algate 1 SLOT ID FLOW REASON".
Everything else is in the key, the data and the timeout, so the kernel's table is all that a restarted broker needs.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from alg.address import Endpoint
from gateway.model import Lease, Transport

SetName = Literal["dnat4", "once4", "dnat6", "once6"]
SETS: tuple[SetName, ...] = ("dnat4", "once4", "dnat6", "once6")

LONGEST_COMMENT = 127
"""Bytes without the NUL; nft shows no longer one."""

_COMMENT = "algate 1"
_PROTOCOLS: dict[Transport, int] = {"tcp": 6, "udp": 17}
_TRANSPORTS: dict[int, Transport] = {number: name for name, number in _PROTOCOLS.items()}
_SIZES = {4: 4, 6: 16}


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map: `key` and `data` as the kernel has them; `timeout` in seconds: what is left."""

    set: SetName
    key: bytes
    data: bytes | None
    timeout: float
    comment: str


@dataclass(frozen=True, slots=True)
class Found:
    """A lease that was read back: whose slot, how many seconds are left, and whether it was used up."""

    lease: Lease
    slot: int
    left: float
    used: bool


def pack_key(destination: Endpoint, transport: Transport, source: str) -> bytes:
    """`destination . protocol . destination port . source`, each padded to four bytes."""
    return (
        destination.ip.packed
        + struct.pack(">B3xH2x", _PROTOCOLS[transport], destination.port)
        + ipaddress.ip_address(source).packed
    )


def elements_of(lease: Lease, slot: int, ttl: float) -> tuple[Element, ...]:
    """What to add for a lease that lives `ttl` seconds (or to delete). ValueError if its comment is too long."""
    comment = f"{_COMMENT} {slot} {lease.id} {lease.flow} {lease.reason}"
    if len(comment.encode()) > LONGEST_COMMENT:
        raise ValueError(f"comment is longer than {LONGEST_COMMENT} bytes")
    six = lease.public.version == 6
    once: SetName = "once6" if six else "once4"
    if lease.direction == "out":
        return (Element(once, pack_key(lease.target, lease.protocol, lease.client), None, ttl, comment),)
    assert lease.peer is not None
    key = pack_key(lease.public, lease.protocol, lease.peer)
    data = lease.target.ip.packed + struct.pack(">H2x", lease.target.port)
    # The map element first: a pinhole that has its `once` has its target too.
    return (Element("dnat6" if six else "dnat4", key, data, ttl, comment), Element(once, key, None, ttl, ""))


def leases_of(elements: Iterable[Element], unix: float) -> list[Found]:
    """The leases that the elements of all sets are; `unix` is the time now. What is not ours is left out."""
    everything = list(elements)
    unused = {(element.set, element.key): element for element in everything if element.set.startswith("once")}
    found = []
    for element in everything:
        owner = _parse_comment(element.comment)
        key = _unpack_key(element)
        if owner is None or key is None:
            continue
        slot, lease_id, flow, reason = owner
        destination, transport, source = key
        inbound = element.data is not None
        once: SetName = "once6" if destination.version == 6 else "once4"
        target = _unpack_data(element.data, destination.version) if element.data is not None else destination
        lease = Lease(
            id=lease_id,
            flow=flow,
            reason=reason,
            client=target.host if inbound else source,
            direction="in" if inbound else "out",
            protocol=transport,
            public=destination,
            target=target,
            peer=source if inbound else None,
            uses=1,
            expires=unix + element.timeout,
            backend="kernel",
        )
        found.append(Found(lease, slot, element.timeout, used=(once, element.key) not in unused))
    return found


def _parse_comment(comment: str) -> tuple[int, str, str, str] | None:
    head, found, rest = comment.partition(_COMMENT + " ")
    words = rest.split(" ")
    if head or not found or len(words) != 4 or not words[0].isdecimal():
        return None
    return int(words[0]), words[1], words[2], words[3]


def _unpack_key(element: Element) -> tuple[Endpoint, Transport, str] | None:
    size = _SIZES[6 if element.set.endswith("6") else 4]
    if len(element.key) != 2 * size + 8:
        return None
    protocol, port = struct.unpack_from(">B3xH", element.key, size)
    transport = _TRANSPORTS.get(protocol)
    if transport is None:
        return None
    destination = ipaddress.ip_address(element.key[:size])
    return Endpoint(str(destination), port), transport, str(ipaddress.ip_address(element.key[-size:]))


def _unpack_data(data: bytes, version: int) -> Endpoint:
    size = _SIZES[version]
    (port,) = struct.unpack_from(">H", data, size)
    return Endpoint(str(ipaddress.ip_address(data[:size])), port)

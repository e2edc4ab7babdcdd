"""A lease as elements of the table `iptables/algate.nft`, and back. Pure.

The lease rides in the user data of one of its elements, as a comment that `nft list table` shows: "algate 1 SLOT ID
FLOW REASON", and words for what the keys do not show: "+1", the second port of a pair; "read", the kind. Everything
else is in the keys, the data and the timeout, so the kernel's table is all that a restarted broker needs.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from alg.address import Endpoint
from gateway.model.requests import Lease, Protocol, Traffic, Transport

ONCE = ("once4", "once6")
COUNTED = ("in4", "inany4", "out4", "outany4", "in6", "inany6", "out6", "outany6")
TALKED = ("talked4", "talked6", "untold")
PUBLIC = ("public4", "public6")
FILLED_IN = frozenset({"module_ports", "server_ports", "inside4", "inside6"})
"""Sets that the configuration fills, and not pinholes."""

UNTOLD = "untold", b"\x11"
"""Set and key (UDP) of the element that exists if sockets may have sent packets that the `talked` sets had no room to
note."""

SETS = (
    *("dnat4", "dnat6", *ONCE, "snat4", "snat6", "many4", "many6", "any4", "any6", "follow4", "follow6"),
    *COUNTED,
)

LEARNT = ("seen4", "seen6", "marks")
"""Maps whose elements packets add."""

LONGEST_COMMENT = 127
"""The longest comment in bytes, without the NUL; nft shows no longer one."""

_COMMENT = "algate 1"
_SECOND = "+1"
_READ = "read"
_PLAIN = "="  # not translated: the public port is the target itself
_LOCAL = "@"  # and the target: the public port is a worker's own
_PROTOCOLS: dict[str, int] = {"tcp": 6, "udp": 17}
_TRANSPORTS: dict[int, Transport] = {6: "tcp", 17: "udp"}
_SIZES = {4: 4, 6: 16}
_SERVICE = struct.Struct(">B3xH2x")
_PORT = struct.Struct(">H2x")


class Element(NamedTuple):
    """An element of a set or map: `key` and `data` as the kernel has them; `timeout` is the rest of its time in
    seconds.

    `packets` and `bytes` are those of its counter, if its set counts.
    """

    set: str
    key: bytes
    data: bytes | None
    timeout: float
    comment: str
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A lease that was read back: its slot, how many seconds are left, and whether it was used up."""

    lease: Lease
    slot: int
    left: float
    used: bool


def pack_key(destination: Endpoint, transport: Protocol, source: str | None) -> bytes:
    """Pack a key: `destination . protocol . destination port`, and `. source` unless it is None; each padded to four
    bytes."""
    key = _packed(destination.host) + _SERVICE.pack(_PROTOCOLS[transport], destination.port)
    return key if source is None else key + _packed(source)


def elements_of(lease: Lease, slot: int, ttl: float) -> tuple[Element, ...]:
    """Return the elements to add (or delete) for a lease that lives `ttl` seconds. Raises ValueError if its comment is
    too long."""
    comment = f"{_COMMENT} {slot} {lease.id} {lease.flow} {lease.reason}"
    if len(comment.encode()) + len(" @") + 2 * len(_pack(lease.target)) > LONGEST_COMMENT:
        raise ValueError(f"comment is longer than {LONGEST_COMMENT} bytes")
    family = lease.public.version
    if lease.backend == "userspace":
        return tuple(_local(lease, ttl, f"{comment} {_LOCAL}{_pack(lease.target).hex()}"))
    if not lease.single:
        if lease.kind == "read":
            comment += f" {_READ}"
        elements = _conversation(family, lease.public, lease.target, lease.peers, ttl, comment)
        if lease.second is not None:
            public, target = second_of(lease)
            elements += _conversation(family, public, target, lease.peers, ttl, f"{comment} {_SECOND}")
        return tuple(elements)
    once = f"once{family}"
    if lease.direction == "out":
        key = pack_key(lease.target, lease.protocol, lease.client)
        admitted = Element(once, key, None, ttl, comment)
        if lease.follows is None:
            return (admitted,)
        return (Element(f"follow{family}", key, _packed(lease.follows), ttl, ""), admitted)
    assert lease.peer is not None
    key = pack_key(lease.public, lease.protocol, lease.peer)
    if lease.public == lease.target:
        return (Element(once, key, None, ttl, f"{comment} {_PLAIN}"),)
    # The map element first: a pinhole that has its `once` has its target too.
    return (Element(f"dnat{family}", key, _pack(lease.target), ttl, comment), Element(once, key, None, ttl, ""))


def talked_of(endpoint: Endpoint) -> tuple[str, bytes]:
    """Return set and key of the element that exists if a socket has recently sent packets past all pinholes."""
    return f"talked{endpoint.version}", _pack(endpoint)


def is_single(lease: Lease) -> bool:
    """Whether an element of the set `once` represents the lease."""
    return lease.single and (lease.peer is not None or lease.direction == "out")


def once_of(lease: Lease) -> tuple[str, bytes]:
    """Return set and key of the element that exists as long as a pinhole of one use (and one peer) is unused."""
    source = lease.client if lease.direction == "out" else lease.peer
    return f"once{lease.public.version}", pack_key(lease.public, lease.protocol, source)


def second_of(lease: Lease) -> tuple[Endpoint, Endpoint]:
    """Return public endpoint and target of the second port of a pair."""
    assert lease.second is not None
    return Endpoint(lease.public.host, lease.public.port + 1), Endpoint(lease.target.host, lease.second)


def traffic_of(elements: Iterable[Element]) -> Traffic:
    """Return what has passed through a conversation: the sum of the counters of its elements."""
    packets, total = {True: 0, False: 0}, 0
    for element in elements:
        packets[element.set.startswith("in")] += element.packets
        total += element.bytes
    return Traffic(packets[True], packets[False], total)


def leases_of(elements: Iterable[Element], unix: float) -> list[Found]:
    """Read the leases from the elements of all sets. `unix` is the current time. Elements that are not ours are
    ignored."""
    everything = {(element.set, element.key): element for element in elements}
    found: list[Found] = []
    seconds: dict[str, int] = {}
    local_ids: set[str] = set()
    peers = _peers(everything)
    for element in everything.values():
        owner = _parse_comment(element.comment)
        if owner is None:
            continue
        if element.set.startswith("snat"):
            conversation = _read_conversation(element, owner, peers, unix)
            if conversation is None:
                continue
            if owner.second:
                seconds[owner.id] = conversation.lease.target.port
            else:
                found.append(conversation)
        elif owner.local is not None:
            local = _read_local(element, owner, peers, everything, unix)
            if local is not None and owner.id not in local_ids:
                local_ids.add(owner.id)
                found.append(local)
        elif element.set.startswith(("dnat", "once")):
            single = _read_single(element, owner, everything, unix)
            if single is not None:
                found.append(single)
    return [_with_second(one, seconds.get(one.lease.id)) for one in found]


@dataclass(frozen=True, slots=True)
class _Owner:
    slot: int
    id: str
    flow: str
    reason: str
    second: bool
    local: bytes | None
    plain: bool
    read: bool


def _conversation(
    family: int, public: Endpoint, target: Endpoint, peers: tuple[str, ...] | None, ttl: float, comment: str
) -> list[Element]:
    """Return the elements of one port of a conversation. The element of the source port comes first, because it holds
    the lease's comment."""
    elements = [Element(f"snat{family}", _pack(target), _pack(public), ttl, comment)]
    if public != target:
        elements.append(Element(f"public{family}", _pack(public), None, ttl, ""))
    anybody = "any" if peers is None else ""
    for peer in (None,) if peers is None else peers:
        inward, socket = pack_key(public, "udp", peer), pack_key(target, "udp", peer)
        elements.append(Element(f"{anybody or 'many'}{family}", inward, _pack(target), ttl, ""))
        elements.append(Element(f"in{anybody}{family}", socket, None, ttl, ""))
        elements.append(Element(f"out{anybody}{family}", socket, None, ttl, ""))
    return elements


def _local(lease: Lease, ttl: float, comment: str) -> list[Element]:
    """Return the elements of a port at which a worker listens. The first one holds the lease's comment."""
    family = lease.public.version
    if lease.single and lease.peer is not None:
        return [Element(f"once{family}", pack_key(lease.public, lease.protocol, lease.peer), None, ttl, comment)]
    peers = None if lease.single else lease.peers
    anybody = "any" if peers is None else ""
    return [
        Element(f"in{anybody}{family}", pack_key(lease.public, lease.protocol, peer), None, ttl, comment)
        for peer in ((None,) if peers is None else peers)
    ]


def _peers(elements: Mapping[tuple[str, bytes], Element]) -> dict[Endpoint, list[str | None]]:
    """Return which peers may send to each inside socket, or socket of this host; None in a list: all hosts."""
    found: dict[Endpoint, list[str | None]] = {}
    for element in elements.values():
        if element.set.startswith("in"):
            key = _unpack_key(element)
            if key is not None:
                found.setdefault(key[0], []).append(key[2])
    return found


def _read_conversation(
    element: Element, owner: _Owner, peers: Mapping[Endpoint, list[str | None]], unix: float
) -> Found | None:
    family = 6 if element.set.endswith("6") else 4
    if len(element.key) != _SIZES[family] + 4 or element.data is None or len(element.data) != _SIZES[family] + 4:
        return None
    target, public = _unpack(element.key, family), _unpack(element.data, family)
    allowed = peers.get(target, [])
    lease = Lease(
        id=owner.id,
        flow=owner.flow,
        reason=owner.reason,
        client=target.host,
        direction="in",
        protocol="udp",
        public=public,
        target=target,
        peer=None,
        expires=unix + element.timeout,
        backend="kernel",
        kind="read" if owner.read else "conversation",
        peers=None if None in allowed else tuple(sorted(peer for peer in allowed if peer is not None)),
    )
    return Found(lease, owner.slot, element.timeout, used=False)


def _read_single(
    element: Element, owner: _Owner, everything: Mapping[tuple[str, bytes], Element], unix: float
) -> Found | None:
    key = _unpack_key(element)
    if key is None or key[2] is None:
        return None
    destination, transport = key[:2]
    source = key[2]
    inbound = element.data is not None or owner.plain
    follow = everything.get((f"follow{destination.version}", element.key)) if not inbound else None
    target = _unpack(element.data, destination.version) if element.data is not None else destination
    lease = Lease(
        id=owner.id,
        flow=owner.flow,
        reason=owner.reason,
        client=target.host if inbound else source,
        direction="in" if inbound else "out",
        protocol=transport,
        public=destination,
        target=target,
        peer=source if inbound else None,
        expires=unix + element.timeout,
        backend="kernel",
        follows=str(ipaddress.ip_address(follow.data)) if follow is not None and follow.data else None,
    )
    used = (f"once{destination.version}", element.key) not in everything
    return Found(lease, owner.slot, element.timeout, used)


def _read_local(
    element: Element,
    owner: _Owner,
    peers: Mapping[Endpoint, list[str | None]],
    everything: Mapping[tuple[str, bytes], Element],
    unix: float,
) -> Found | None:
    key = _unpack_key(element)
    if key is None or owner.local is None or len(owner.local) != _SIZES[key[0].version] + 4:
        return None
    public, transport, source = key
    target = _unpack(owner.local, public.version)
    allowed = peers.get(public, [])
    lease = Lease(
        id=owner.id,
        flow=owner.flow,
        reason=owner.reason,
        client=target.host,
        direction="in",
        protocol=transport,
        public=public,
        target=target,
        peer=source if transport == "tcp" else None,
        expires=unix + element.timeout,
        backend="userspace",
        kind="local",
        peers=() if transport == "tcp" else None if None in allowed else tuple(sorted(p for p in allowed if p)),
    )
    return Found(lease, owner.slot, element.timeout, used=False)


def _with_second(found: Found, second: int | None) -> Found:
    if second is None:
        return found
    lease = found.lease
    changed = Lease(**{**{name: getattr(lease, name) for name in lease.__struct_fields__}, "second": second})
    return Found(changed, found.slot, found.left, found.used)


def _parse_comment(comment: str) -> _Owner | None:
    head, found, rest = comment.partition(_COMMENT + " ")
    words = rest.split(" ")
    if head or not found or not words[0].isdecimal() or len(words) < 4:
        return None
    roles = set(words[4:])
    local = None
    for role in [role for role in roles if role.startswith(_LOCAL)]:
        roles.remove(role)
        try:
            local = bytes.fromhex(role.removeprefix(_LOCAL))
        except ValueError:
            return None
    if not roles <= {_SECOND, _PLAIN, _READ}:
        return None
    return _Owner(int(words[0]), words[1], words[2], words[3], _SECOND in roles, local, _PLAIN in roles, _READ in roles)


def _unpack_key(element: Element) -> tuple[Endpoint, Transport, str | None] | None:
    """Read destination, protocol and source from a key that `pack_key` made."""
    size = _SIZES[6 if element.set.endswith("6") else 4]
    anybody = "any" in element.set
    if len(element.key) != (1 if anybody else 2) * size + _SERVICE.size:
        return None
    protocol, port = _SERVICE.unpack_from(element.key, size)
    transport = _TRANSPORTS.get(protocol)
    if transport is None:
        return None
    source = None if anybody else _text(element.key[-size:])
    return Endpoint(_text(element.key[:size]), port), transport, source


@functools.lru_cache(maxsize=4096)  # the same few addresses again and again, and parsing is dear
def _packed(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


@functools.lru_cache(maxsize=4096)
def _pack(endpoint: Endpoint) -> bytes:
    return _packed(endpoint.host) + _PORT.pack(endpoint.port)


def _unpack(data: bytes, version: int) -> Endpoint:
    size = _SIZES[version]
    (port,) = _PORT.unpack_from(data, size)
    return Endpoint(_text(data[:size]), port)


@functools.lru_cache(maxsize=4096)
def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))

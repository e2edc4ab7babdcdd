"""A lease as elements of the table `iptables/algate.nft`, and back. Pure.

The lease rides in the user data of one of its elements, as a comment that `nft list table` shows: "algate 1 SLOT ID
FLOW REASON", and words for what the keys do not show: "+1", the second port of a pair; "read", "mapping", "exchange"
and "gre", the kind; "tcp+udp", the protocol. Everything else is in the keys, the data and the timeout, so the kernel's
table is all that a restarted broker needs.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from alg.address import Endpoint
from gateway.model.requests import Kind, Lease, Protocol, Traffic, Transport, transports_of

ONCE = ("once4", "once6", "onceany4", "onceany6")
INTERVAL = ("inonly4", "outonly4", "inonly6", "outonly6")
COUNTED = ("in4", "inany4", "out4", "outany4", "in6", "inany6", "out6", "outany6", *INTERVAL, "ingre4", "outgre4")
TALKED = ("talked4", "talked6", "untold")
PUBLIC = ("public4", "public6")
_LOOKED_FOR = ("many", "any", "map", "only", "snat")
KEYS = {f"{name}{family}": f"{name}keys{family}" for name in _LOOKED_FOR for family in (4, 6)}
"""Maps in which rules look for a key without taking its data, which Linux allows since 6.5: the keys of each are in a
set, too."""

FILLED_IN = frozenset({"module_ports", "server_ports", "inside4", "inside6"})
"""Sets that the configuration fills, and not pinholes."""

NOT_NOTED = "untold", b"\x11"
"""Set and key (UDP) of the element that exists if sockets may have sent packets past all pinholes for which the
`talked` sets had no room."""

SETS = (
    *("dnat4", "dnat6", *ONCE, "snat4", "snat6", "many4", "many6", "any4", "any6", "follow4", "follow6"),
    *("dnatany4", "dnatany6", "map4", "map6", "only4", "only6", "held4", "held6"),
    *("gre4", "call4", "snatgre4"),
    *COUNTED,
)

LEARNT = ("seen4", "seen6", "marks")
"""Maps whose elements packets add."""

LONGEST_COMMENT = 127
"""The longest comment in bytes, without the NUL; nft shows no longer one."""

_COMMENT = "algate 1"
_SECOND = "+1"
_KINDS = ("read", "mapping", "exchange", "gre")
_BOTH = "tcp+udp"
_ENDS = "&"  # and the ends of an exchange, or what the keys do not say of a call
_PLAIN = "="  # not translated: the public port is the target itself
_LOCAL = "@"  # and the target: the public port is a worker's own
_UDP = 17
_PROTOCOLS: dict[str, int] = {"tcp": 6, "udp": _UDP}
_TRANSPORTS: dict[int, Transport] = {6: "tcp", 17: "udp"}
_SIZES = {4: 4, 6: 16}
_SERVICE = struct.Struct(">B3xH2x")
_PORT = struct.Struct(">H2x")
_CALL = struct.Struct(">H")


class Element:
    """An element of a set or map: `key` and `data` as the kernel has them; `timeout` is the rest of its time in
    seconds. It does not change.

    `packets` and `octets` are those of its counter, where its set counts.
    `end`: the last key of an interval, of which `key` is the first.

    It is a plain class, because a call has fifty of them made, and the compiled form of a tuple or dataclass with names
    takes ten times as long to make.
    """

    __slots__ = ("comment", "data", "end", "key", "octets", "packets", "set", "timeout")

    def __init__(
        self,
        set: str,
        key: bytes,
        data: bytes | None,
        timeout: float,
        comment: str,
        packets: int = 0,
        octets: int = 0,
        end: bytes | None = None,
    ) -> None:
        self.set = set
        self.key = key
        self.data = data
        self.timeout = timeout
        self.comment = comment
        self.packets = packets
        self.octets = octets
        self.end = end

    def with_comment(self, comment: str) -> Element:
        """Return the same element with another comment."""
        return Element(self.set, self.key, self.data, self.timeout, comment, self.packets, self.octets, self.end)

    def with_counter(self, packets: int, octets: int) -> Element:
        """Return the same element with another counter."""
        return Element(self.set, self.key, self.data, self.timeout, self.comment, packets, octets, self.end)

    def _fields(self) -> tuple[object, ...]:
        return self.set, self.key, self.data, self.timeout, self.comment, self.packets, self.octets, self.end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Element) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((self.set, self.key))

    def __repr__(self) -> str:
        return f"Element{self._fields()}"


@dataclass(frozen=True, slots=True)
class Found:
    """A lease that was read back: its slot, how many seconds are left, and whether it was used up."""

    lease: Lease
    slot: int
    left: float
    used: bool
    merged: bool = False  # it shares its public port with others, or did


class _Names:
    """The names of the sets of conversations of an IP version."""

    def __init__(self, version: int) -> None:
        self.snat, self.public = f"snat{version}", f"public{version}"
        self.many, self.inward, self.outward = f"many{version}", f"in{version}", f"out{version}"
        self.any, self.inward_any, self.outward_any = f"any{version}", f"inany{version}", f"outany{version}"


_NAMES = {4: _Names(4), 6: _Names(6)}


class _Packed:
    """A socket of UDP as keys and data have it: `service` (address . protocol . port) and `socket` (address . port)."""

    __slots__ = ("service", "socket")

    def __init__(self, host: bytes, port: int) -> None:
        self.service = host + _SERVICE.pack(_UDP, port)
        self.socket = host + _PORT.pack(port)


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
    match lease.kind:
        case "mapping":
            return tuple(_mapping(lease, ttl, comment))
        case "exchange":
            return tuple(_exchange(lease, ttl, comment))
        case "gre":
            return tuple(_gre(lease, ttl, comment))
        case "anybody":
            key = pack_key(lease.public, lease.protocol, None)
            target = Element(f"dnatany{family}", key, _pack(lease.target), ttl, comment)
            return (target, Element(f"onceany{family}", key, None, ttl, ""))
        case "conversation" | "read":
            comment += _role(lease)
            return tuple(_conversation(lease, ttl, comment))
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


def with_keys(elements: Iterable[Element]) -> Iterator[Element]:
    """Yield the elements, and for each one of a map whose keys rules look for its key in the set that has them."""
    for element in elements:
        yield element
        name = KEYS.get(element.set)
        if name is not None:
            yield Element(name, element.key, None, element.timeout, "", end=element.end)


def merged(leases: Sequence[tuple[Lease, int, float]]) -> tuple[Element, ...]:
    """The elements of leases that share a public port, each with its slot and the seconds that it lives: for each
    element the longest of those that want it. The leases themselves are stored in elements of their own."""
    found: dict[tuple[str, bytes], Element] = {}
    for lease, slot, ttl in leases:
        for element in (*elements_of(lease, slot, ttl), *_held(lease, slot, ttl)):
            if not element.set.startswith("held"):
                element = element.with_comment("")
            name = element.set, element.key
            if name not in found or found[name].timeout < element.timeout:
                found[name] = element
    return tuple(_largest(found.values()))


def _largest(elements: Iterable[Element]) -> Iterator[Element]:
    """Leave out intervals that lie within others, because the kernel takes none that overlap."""
    wide: dict[str, list[Element]] = {}
    for element in elements:
        if element.end is None or element.set.startswith("held"):
            yield element
        else:
            wide.setdefault(element.set, []).append(element)
    for several in wide.values():
        for element in several:
            end = element.end or b""
            if not any(
                other is not element and other.key <= element.key and end <= (other.end or b"") for other in several
            ):
                yield element


def _held(lease: Lease, slot: int, ttl: float) -> Iterator[Element]:
    """Elements that name the owner of a lease and the peers that may come, where it shares its public port."""
    family = lease.public.version
    comment = f"{_COMMENT} {slot} {lease.id} {lease.flow} {lease.reason}{_role(lease)}"
    pairs = [(lease.public, lease.target, "")]
    if lease.second is not None:
        pairs.append((*second_of(lease), f" {_SECOND}"))
    for public, target, role in pairs:
        for first, last in _ranges(lease.peers, family):
            key = bytes.fromhex(lease.id) + _PORT.pack(target.port) + first + last
            yield Element(f"held{family}", key, _pack(public) + _packed(target.host), ttl, comment + role)


def _ranges(peers: tuple[str, ...] | None, family: int) -> list[tuple[bytes, bytes]]:
    """Return peers as pairs of first and last addresses. No peers at all are written as a range that is empty: the last
    and the first address of the family."""
    none, every = bytes(_SIZES[family]), b"\xff" * _SIZES[family]
    if peers is None:
        return [(none, every)]
    return [_interval(peer) for peer in peers] or [(every, none)]


def _peers_in(ranges: Iterable[tuple[bytes, bytes]], kind: Kind) -> tuple[str, ...] | None:
    found = []
    for first, last in ranges:
        if not any(first) and last == b"\xff" * len(last):
            return None
        if first <= last:
            found.append(_prefix(first, last) if kind == "mapping" else _text(first))
    return tuple(sorted(found))


@functools.lru_cache(maxsize=4096)
def _interval(prefix: str) -> tuple[bytes, bytes]:
    network = ipaddress.ip_network(prefix)
    return network.network_address.packed, network.broadcast_address.packed


def _prefix(first: bytes, last: bytes) -> str:
    differ = int.from_bytes(first, "big") ^ int.from_bytes(last, "big")
    return f"{_text(first)}/{8 * len(first) - differ.bit_length()}"


def _role(lease: Lease) -> str:
    """Return the word of a comment that gives the kind of a lease."""
    kind = f" {lease.kind}" if lease.kind in _KINDS else ""
    return f"{kind} {lease.protocol}" if lease.kind == "mapping" else kind


def _mapping(lease: Lease, ttl: float, comment: str) -> Iterator[Element]:
    """Return the elements of a mapping. The element of the source port comes first, because it has the comment that
    names the lease."""
    family, public, target = lease.public.version, lease.public, lease.target
    translated = public != target
    comment += _role(lease)
    for transport in transports_of(lease.protocol):
        outer, inner = pack_key(public, transport, None), pack_key(target, transport, None)
        yield Element(f"snat{family}", inner, _pack(public), ttl, comment)
        comment = ""
        if translated and transport == "udp":
            yield Element(f"public{family}", _pack(public), None, ttl, "")
        passing = ("in", "out") if transport == "udp" else ("in",)
        if lease.peers is None:
            if translated:
                yield Element(f"map{family}", outer, _pack(target), ttl, "")
            for way in passing:
                yield Element(f"{way}any{family}", inner, None, ttl, "")
            continue
        for first, last in _ranges(lease.peers, family) if lease.peers else ():
            if translated:
                yield Element(f"only{family}", outer + first, _pack(target), ttl, "", end=outer + last)
            for way in passing:
                yield Element(f"{way}only{family}", inner + first, None, ttl, "", end=inner + last)


def _exchange(lease: Lease, ttl: float, comment: str) -> Iterator[Element]:
    """The elements of an exchange: first the one for what the client outside sends, because it holds the lease.
    As long as the server's port is not known, nothing passes."""
    assert lease.outer is not None
    assert lease.inner is not None
    seconds = struct.pack(">HH", lease.outer_second or 0, lease.second or 0)
    ends = _pack(lease.public) + _pack(lease.target) + _pack(lease.inner) + seconds
    said = f"{comment} exchange {_ENDS}{ends.hex()}"
    ports = [(lease.outer, lease.inner, lease.public, lease.target)]
    if lease.outer_second is not None:
        inner, public = (Endpoint(end.host, end.port + 1) for end in (lease.inner, lease.public))
        target = Endpoint(lease.target.host, lease.second or 0)
        ports.append((Endpoint(lease.outer.host, lease.outer_second), inner, public, target))
    family = lease.public.version
    for outer, inner, public, target in ports:
        yield Element(f"snat{family}", pack_key(outer, "udp", None), _pack(inner), ttl, said)
        said = ""
        yield Element(f"public{family}", _pack(public), None, ttl, "")
        yield Element(f"public{family}", _pack(inner), None, ttl, "")
        if not target.port:
            continue
        yield Element(f"snat{family}", pack_key(target, "udp", None), _pack(public), ttl, "")
        yield Element(f"many{family}", pack_key(public, "udp", outer.host), _pack(target), ttl, "")
        yield Element(f"many{family}", pack_key(inner, "udp", target.host), _pack(outer), ttl, "")
        yield Element(f"in{family}", pack_key(target, "udp", outer.host), None, ttl, "")
        yield Element(f"in{family}", pack_key(outer, "udp", target.host), None, ttl, "")


def _gre(lease: Lease, ttl: float, comment: str) -> Iterator[Element]:
    """Return the elements of a call of PPTP. The element that lets packets in comes first, because it has the comment
    that names the lease. Nothing may leave as long as the server's call ID is not known."""
    assert lease.peer is not None
    client, server, public = (_packed(host) for host in (lease.target.host, lease.peer, lease.public.host))
    ends = public + _CALL.pack(lease.target.port) + (b"" if lease.second is None else _CALL.pack(lease.second))
    inward = client + server + _PORT.pack(lease.public.port)
    yield Element("ingre4", inward, None, ttl, f"{comment} gre {_ENDS}{ends.hex()}")
    translated = public != client
    if translated:
        yield Element("gre4", public + server + _PORT.pack(lease.public.port), client, ttl, "")
    if lease.public.port != lease.target.port:
        yield Element("call4", inward, _CALL.pack(lease.target.port), ttl, "")
    if lease.second is not None:
        outward = client + server + _PORT.pack(lease.second)
        yield Element("outgre4", outward, None, ttl, "")
        if translated:
            yield Element("snatgre4", outward, public, ttl, "")


def talked_of(endpoint: Endpoint) -> tuple[str, bytes]:
    """Return set and key of the element that exists if a socket has recently sent packets past all pinholes."""
    return f"talked{endpoint.version}", _pack(endpoint)


def is_single(lease: Lease) -> bool:
    """Whether an element of `once` stands for the lease."""
    return lease.single and (lease.peer is not None or lease.direction == "out" or lease.kind == "anybody")


def once_of(lease: Lease) -> tuple[str, bytes]:
    """Return set and key of the element that exists as long as a pinhole of one use (and one peer) is unused."""
    source = lease.client if lease.direction == "out" else lease.peer
    anybody = "any" if lease.kind == "anybody" else ""
    return f"once{anybody}{lease.public.version}", pack_key(lease.public, lease.protocol, source)


def second_of(lease: Lease) -> tuple[Endpoint, Endpoint]:
    """Return public endpoint and target of the second port of a pair."""
    assert lease.second is not None
    return Endpoint(lease.public.host, lease.public.port + 1), Endpoint(lease.target.host, lease.second)


def traffic_of(elements: Iterable[Element]) -> Traffic:
    """Return what has passed through a conversation: the sum of the counters of its elements."""
    packets, total = {True: 0, False: 0}, 0
    for element in elements:
        packets[element.set.startswith("in")] += element.packets
        total += element.octets
    return Traffic(packets[True], packets[False], total)


def leases_of(elements: Iterable[Element], unix: float) -> list[Found]:
    """Read the leases from the elements of all sets. `unix` is the current time. Elements that are not ours are
    ignored."""
    everything = {(element.set, element.key): element for element in elements}
    found: list[Found] = []
    seconds: dict[str, int] = {}
    local_ids: set[str] = set()
    held: dict[str, list[tuple[Element, _Owner]]] = {}
    peers = _peers(everything)
    for element in everything.values():
        owner = _parse_comment(element.comment)
        if owner is None:
            continue
        read: Found | None = None
        if element.set.startswith("held"):
            held.setdefault(owner.id, []).append((element, owner))
        elif owner.kind == "exchange":
            read = _read_exchange(element, owner, unix)
        elif owner.kind == "gre":
            read = _read_gre(element, owner, unix)
        elif element.set.startswith("snat"):
            read = _read_shared(element, owner, peers, unix)
            if read is not None and owner.second:
                seconds[owner.id] = read.lease.target.port
                read = None
        elif owner.local is not None:
            read = _read_local(element, owner, peers, unix)
            if owner.id in local_ids:
                read = None
            local_ids.add(owner.id)
        elif element.set.startswith(("dnat", "once")):
            read = _read_single(element, owner, everything, unix)
        if read is not None:
            found.append(read)
    found += [read for several in held.values() if (read := _read_held(several, unix)) is not None]
    return [_with_second(read, seconds.get(read.lease.id)) for read in found]


@dataclass(frozen=True, slots=True)
class _Owner:
    slot: int
    id: str
    flow: str
    reason: str
    second: bool
    local: bytes | None
    plain: bool
    kind: Kind
    protocol: Protocol
    ends: bytes


def _conversation(lease: Lease, ttl: float, comment: str) -> list[Element]:
    """Return the elements of a conversation. Of each port the element of the source port comes first, because it has
    the comment that names the lease."""
    elements: list[Element] = []
    names = _NAMES[lease.public.version]
    translated = lease.public != lease.target
    peers = _packed_peers(lease.peers)
    for public, target in _packed_ports(lease):
        elements.append(Element(names.snat, target.service, public.socket, ttl, comment))
        comment = f"{comment} {_SECOND}"
        if translated:
            elements.append(Element(names.public, public.socket, None, ttl, ""))
        _let_in(elements, names, public, target, peers, ttl)
    return elements


def admitting(lease: Lease, peers: Sequence[str], ttl: float) -> tuple[Element, ...]:
    """Of the elements of a conversation only those that let these peers in: a subset of `elements_of`, made more
    quickly."""
    elements: list[Element] = []
    names, packed = _NAMES[lease.public.version], _packed_peers(peers)
    for public, target in _packed_ports(lease):
        _let_in(elements, names, public, target, packed, ttl)
    return tuple(elements)


def _let_in(
    elements: list[Element], names: _Names, public: _Packed, target: _Packed, peers: list[bytes], ttl: float
) -> None:
    """Add the elements that let `peers` (b"": all hosts) in to one port."""
    for peer in peers:
        inward, socket = public.service + peer, target.service + peer
        elements.append(Element(names.many if peer else names.any, inward, target.socket, ttl, ""))
        elements.append(Element(names.inward if peer else names.inward_any, socket, None, ttl, ""))
        elements.append(Element(names.outward if peer else names.outward_any, socket, None, ttl, ""))


def _packed_peers(peers: Sequence[str] | None) -> list[bytes]:
    return [b""] if peers is None else [_packed(peer) for peer in peers]


def _packed_ports(lease: Lease) -> list[tuple[_Packed, _Packed]]:
    """The public ports of a conversation, and the sockets behind them."""
    public, target = _packed(lease.public.host), _packed(lease.target.host)
    port = lease.public.port
    ports = [(_Packed(public, port), _Packed(target, lease.target.port))]
    if lease.second is not None:
        ports.append((_Packed(public, port + 1), _Packed(target, lease.second)))
    return ports


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


_Peers = Mapping[tuple[Endpoint, Transport], list[tuple[bytes, bytes]]]


def _peers(elements: Mapping[tuple[str, bytes], Element]) -> _Peers:
    """Return the peers that may send to a socket, as pairs of first and last addresses."""
    found: dict[tuple[Endpoint, Transport], list[tuple[bytes, bytes]]] = {}
    for element in elements.values():
        if element.set.startswith("in"):
            key = _unpack_key(element)
            if key is not None:
                size = _SIZES[key[0].version]
                first = bytes(size) if key[2] is None else element.key[-size:]
                last = b"\xff" * size if key[2] is None else (element.end or element.key)[-size:]
                found.setdefault(key[:2], []).append((first, last))
    return found


def _read_shared(element: Element, owner: _Owner, peers: _Peers, unix: float) -> Found | None:
    """Read a conversation or a mapping, from the element of the source port of its socket."""
    family = 6 if element.set.endswith("6") else 4
    size = _SIZES[family]
    if len(element.key) != size + _SERVICE.size or element.data is None or len(element.data) != size + _PORT.size:
        return None
    number, port = _SERVICE.unpack_from(element.key, size)
    transport = _TRANSPORTS.get(number)
    if transport is None:
        return None
    target, public = Endpoint(_text(element.key[:size]), port), _unpack(element.data, family)
    allowed = peers.get((target, transport), [])
    lease = _shared(owner, public, target, unix + element.timeout, _peers_in(allowed, owner.kind))
    return Found(lease, owner.slot, element.timeout, used=False)


def _read_held(several: Sequence[tuple[Element, _Owner]], unix: float) -> Found | None:
    """Read a lease that shares its public port with others, from elements of its own."""
    first = [(element, owner) for element, owner in several if not owner.second]
    if not first:
        return None
    element, owner = first[0]
    family = 6 if element.set.endswith("6") else 4
    size = _SIZES[family]
    if element.data is None or len(element.key) != 2 * size + 12 or len(element.data) != 2 * size + _PORT.size:
        return None
    public, host = _unpack(element.data, family), _text(element.data[-size:])
    ranges = [(element.key[-2 * size : -size], element.key[-size:]) for element, _ in first]
    target = Endpoint(host, _target_port(element))
    lease = _shared(owner, public, target, unix + element.timeout, _peers_in(ranges, owner.kind))
    beside = next((element for element, its in several if its.second), None)
    if beside is not None:
        lease = msgspec.structs.replace(lease, second=_target_port(beside))
    return Found(lease, owner.slot, element.timeout, used=False, merged=True)


def _target_port(held: Element) -> int:
    (port,) = _PORT.unpack_from(held.key, 8)
    return int(port)


def _shared(owner: _Owner, public: Endpoint, target: Endpoint, expires: float, peers: tuple[str, ...] | None) -> Lease:
    return Lease(
        id=owner.id,
        flow=owner.flow,
        reason=owner.reason,
        client=target.host,
        direction="in",
        protocol=owner.protocol,
        public=public,
        target=target,
        peer=None,
        expires=expires,
        backend="kernel",
        kind=owner.kind,
        peers=peers,
    )


def _read_exchange(element: Element, owner: _Owner, unix: float) -> Found | None:
    family = 6 if element.set.endswith("6") else 4
    size = _SIZES[family]
    width = size + _PORT.size
    if len(owner.ends) != 3 * width + 4 or len(element.key) != size + _SERVICE.size:
        return None
    public, target, inner = (_unpack(owner.ends[at * width :], family) for at in range(3))
    outer_second, second = struct.unpack_from(">HH", owner.ends, 3 * width)
    _, port = _SERVICE.unpack_from(element.key, size)
    outer = Endpoint(_text(element.key[:size]), port)
    lease = _shared(owner, public, target, unix + element.timeout, ())
    lease = msgspec.structs.replace(
        lease,
        visitor=outer.host,
        outer=outer,
        inner=inner,
        outer_second=outer_second or None,
        second=second if outer_second else None,
    )
    return Found(lease, owner.slot, element.timeout, used=False)


def _read_gre(element: Element, owner: _Owner, unix: float) -> Found | None:
    size, calls = _SIZES[4], len(owner.ends) - _SIZES[4]
    if (
        element.set != "ingre4"
        or len(element.key) != 2 * size + _PORT.size
        or calls not in (_CALL.size, 2 * _CALL.size)
    ):
        return None
    (call,) = _PORT.unpack_from(element.key, 2 * size)
    (own,) = _CALL.unpack_from(owner.ends, size)
    (second,) = _CALL.unpack_from(owner.ends, size + _CALL.size) if calls > _CALL.size else (None,)
    target = Endpoint(_text(element.key[:size]), own)
    lease = _shared(owner, Endpoint(_text(owner.ends[:size]), call), target, unix + element.timeout, ())
    server = _text(element.key[size : 2 * size])
    lease = msgspec.structs.replace(lease, protocol="gre", peer=server, second=second)
    return Found(lease, owner.slot, element.timeout, used=False)


def _read_single(
    element: Element, owner: _Owner, everything: Mapping[tuple[str, bytes], Element], unix: float
) -> Found | None:
    key = _unpack_key(element)
    anybody = "any" in element.set
    if key is None or (key[2] is None) != anybody:
        return None
    destination, transport, source = key
    inbound = element.data is not None or owner.plain
    follow = everything.get((f"follow{destination.version}", element.key)) if not inbound else None
    target = _unpack(element.data, destination.version) if element.data is not None else destination
    lease = Lease(
        id=owner.id,
        flow=owner.flow,
        reason=owner.reason,
        client=target.host if inbound else source or "",
        direction="in" if inbound else "out",
        protocol=transport,
        public=destination,
        target=target,
        peer=source if inbound else None,
        expires=unix + element.timeout,
        backend="kernel",
        kind="anybody" if anybody else "once",
        follows=str(ipaddress.ip_address(follow.data)) if follow is not None and follow.data else None,
    )
    used = once_of(lease) not in everything
    return Found(lease, owner.slot, element.timeout, used)


def _read_local(
    element: Element,
    owner: _Owner,
    peers: _Peers,
    unix: float,
) -> Found | None:
    key = _unpack_key(element)
    if key is None or owner.local is None or len(owner.local) != _SIZES[key[0].version] + 4:
        return None
    public, transport, source = key
    target = _unpack(owner.local, public.version)
    allowed = _peers_in(peers.get((public, transport), []), "local")
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
        peers=() if transport == "tcp" else allowed,
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
    owner = _Owner(int(words[0]), words[1], words[2], words[3], False, None, False, "conversation", "udp", b"")
    changes: dict[str, Any] = {}
    for role in words[4:]:
        try:
            if role.startswith(_LOCAL):
                changes["local"] = bytes.fromhex(role.removeprefix(_LOCAL))
            elif role.startswith(_ENDS):
                changes["ends"] = bytes.fromhex(role.removeprefix(_ENDS))
            elif role in _KINDS:
                changes["kind"] = role
            elif role == _BOTH or role in _PROTOCOLS:
                changes["protocol"] = role
            elif role in (_SECOND, _PLAIN):
                changes["second" if role == _SECOND else "plain"] = True
            else:
                return None
        except ValueError:
            return None
    return replace(owner, **changes) if changes else owner


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

"""The mappings that clients have asked for, by whichever protocol. Pure: times are arguments, monotonic, in seconds.

A mapping is known by (client, transport, inside port): a client that asks for the same socket by PCP and by UPnP has
one mapping with one public port and two *holds*. Each hold has its own lifetime, filters, description and credential,
and is a lease of its own at the broker; the mapping ends with its last hold. The public port is never what a mapping is
known by.

How a front uses it: it makes a `MappingRequest` from its message, and calls `PortMapper.map` or `unmap`
(gateway/front/portmap/mapper.py), which wait for the broker. What cannot be had raises `Refusal`, whose `why` the front
translates into its own error code; no code of any protocol is here. A client is shown its own mappings only
(`of_client`, `at_public`). Whoever wants to know of changes (UPnP's events, the announcements of PCP) appends a
function to `listeners`, which is called at once and must not wait.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from alg.address import Endpoint
from gateway.lease.validate import LOWEST_PORT, MOST_PEERS, SERVICE_PORTS
from gateway.model.requests import Transport

HolderName = Literal["pcp", "peer", "natpmp", "upnp"]
"""The protocol by which a hold was asked for; "peer": by PCP, for one peer (RFC 6887 section 12). The reason of its
lease is "map." and this word."""

Why = Literal[
    "denied", "inside_port", "foreign", "taken", "address", "filters", "quota", "rate", "full", "none", "outside",
    "kernel",
]  # fmt: skip
"""Why a request is refused.

denied: a rule of the operator's, or its limit. inside_port: this port of a client is never mapped (below 1024, that of
a service, or outside of `portmap.inside_ports`). foreign: the mapping's credential is another one. taken: exactly this
public port was wanted and is not to be had. address: exactly this public address was wanted and is not this router's.
filters: more than the kernel takes, or not of the client's family. quota: the client has as many as it may. rate: it
asks too fast. full: there are as many mappings as there may be, or no public port is left. none: there is no such
mapping of this client. outside: this router has no public address of this family now. kernel: the broker did not
answer, or netfilter failed; it may work later.
"""

What = Literal["opened", "renewed", "closed", "moved", "address"]
"""What has happened. opened: a mapping that was not there. renewed: a hold was added, renewed or changed. closed: the
mapping is gone. moved: it has another public address or port now. address: this router has another public address;
such an event has no mapping."""

MOST = 16384
"""Number of mappings of all clients together."""

_TEXT = 256  # characters of a description that are kept

MappingKey = tuple[str, Transport, int]


class Refusal(Exception):
    """A request is refused. `detail` is for the log, and `seconds` says for how long it is of no use to ask again (the
    lifetime of PCP's errors)."""

    def __init__(self, why: Why, detail: str, seconds: int = 30) -> None:
        super().__init__(f"{why}: {detail}")
        self.why: Why = why
        self.detail = detail
        self.seconds = seconds


class MappingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request for a mapping, or for its renewal.

    `client`: the address that asks, which is also that of the target. `port`: its inside port. `credential` has to be
    that of the hold, if there is one already (PCP's nonce in hex; "" where the protocol has none). `lifetime`: seconds
    that are wanted; 0 is for UPnP "without an end" (a deletion is not a request). `suggested_port` and
    `suggested_host`: the public port and address that are wanted, if any; `exact`: those or none. `filters`: prefixes
    such as "198.51.100.0/24" of those that may come; (): everybody; None: as before, and everybody in a new hold.
    `peer`: whom the hold is for, address and port as a text, where a mapping has a hold for each of several.
    """

    client: str
    transport: Transport
    port: int
    holder: HolderName
    lifetime: float
    credential: str = ""
    suggested_port: int | None = None
    suggested_host: str | None = None
    exact: bool = False
    filters: tuple[str, ...] | None = None
    description: str = ""
    peer: str = ""

    @property
    def key(self) -> MappingKey:
        """The key of the mapping: the client's socket and the transport."""
        return self.client, self.transport, self.port

    @property
    def name(self) -> str:
        """What its hold is known by."""
        return hold_name(self.holder, self.peer)


@dataclass(slots=True)
class Hold:
    """One protocol's hold of a mapping. `expires`: monotonic. `lease`: the id of its lease at the broker, which ends at
    `leased` unless it is renewed there."""

    holder: HolderName
    credential: str
    expires: float
    lease: str = ""
    leased: float = 0.0
    filters: tuple[str, ...] = ()
    description: str = ""
    peer: str = ""

    @property
    def name(self) -> str:
        """What it is known by in its mapping."""
        return hold_name(self.holder, self.peer)


@dataclass(slots=True)
class Mapping:
    """A public port that leads to a client's inside port. `public`: that of this router; `above`: that of the router
    above, which leads to it, if that one was asked for one."""

    client: str
    transport: Transport
    port: int
    public: Endpoint
    holds: dict[str, Hold] = field(default_factory=dict)
    above: Endpoint | None = None

    @property
    def shown(self) -> Endpoint:
        """What the client is told: where the world finds it."""
        return self.public if self.above is None else self.above

    @property
    def key(self) -> MappingKey:
        """What the mapping is known by."""
        return self.client, self.transport, self.port

    @property
    def target(self) -> Endpoint:
        """The client's socket."""
        return Endpoint(self.client, self.port)

    @property
    def expires(self) -> float:
        """The time at which the last hold ends."""
        return max(hold.expires for hold in self.holds.values())

    def left(self, name: str, now: float) -> int:
        """The seconds for which a hold lasts, rounded up."""
        return max(0, -int(-(self.holds[name].expires - now) // 1))


class MappingEvent(msgspec.Struct, frozen=True):
    """What has happened to a mapping, for listeners. `by`: what did it: a holder, "expiry", "kick", "lost",
    "address", "upstream"."""

    what: What
    by: str
    mapping: Mapping | None = None


class MappingLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked for. `per_client`: mappings of one client. `inside_ports`: lowest and highest port of clients.
    `lifetime`: shortest and longest that PCP and NAT-PMP get. `permanent`: the longest that UPnP gets, and what it gets
    for "without an end"."""

    per_client: int = 32
    inside_ports: tuple[int, int] = (LOWEST_PORT, 65535)
    lifetime: tuple[int, int] = (120, 7200)
    permanent: int = 604800


def _same(address: str) -> str:
    return address


class MappingTable:
    """All mappings. `identify` says which addresses are one client, for the quota."""

    def __init__(self, limits: MappingLimits, identify: Callable[[str], str] = _same) -> None:
        self.limits = limits
        self.listeners: list[Callable[[MappingEvent], None]] = []
        self._identify = identify
        self._mappings: dict[MappingKey, Mapping] = {}
        self._clients: dict[str, dict[MappingKey, Mapping]] = {}  # by address
        self._payers: dict[str, set[MappingKey]] = {}  # by what `identify` says
        self._paid_by: dict[MappingKey, str] = {}
        self._public: dict[tuple[Transport, Endpoint], Mapping] = {}

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(list(self._mappings.values()))

    # --- what clients see -------------------------------------------------------------------------------------------

    def find(self, key: MappingKey) -> Mapping | None:
        """Return the mapping of a client's socket."""
        return self._mappings.get(key)

    def of_client(self, client: str, holder: HolderName | None = None) -> list[Mapping]:
        """Return the mappings of one client (those that `holder` holds), in the order in which they were made."""
        found = self._clients.get(client, {}).values()
        return [mapping for mapping in found if holder is None or holder in mapping.holds]

    def at_public(self, client: str, transport: Transport, port: int) -> Mapping | None:
        """Return this client's mapping with a public port. A mapping of another client is not returned."""
        found = self._clients.get(client, {}).values()
        return next(
            (mapping for mapping in found if mapping.transport == transport and mapping.shown.port == port), None
        )

    # --- asking -----------------------------------------------------------------------------------------------------

    def check(self, request: MappingRequest) -> Mapping | None:
        """Return the mapping that the request would renew, or None if it would be a new one. Raises Refusal."""
        low, high = self.limits.inside_ports
        if not max(low, LOWEST_PORT) <= request.port <= high:
            raise Refusal("inside_port", f"port {request.port} is not between {max(low, LOWEST_PORT)} and {high}", 1800)
        if request.port in SERVICE_PORTS[request.transport]:
            raise Refusal("inside_port", f"port {request.port} is that of a service", 1800)
        if request.filters:
            _check_filters(request.filters, Endpoint(request.client, request.port).version)
        there = self._mappings.get(request.key)
        if there is not None:
            hold = there.holds.get(request.name)
            if hold is not None and hold.credential != request.credential:
                raise Refusal("foreign", f"{there.target} is held by another credential")
            if hold is None and request.peer and sum(bool(other.peer) for other in there.holds.values()) >= MOST_PEERS:
                raise Refusal("quota", f"{there.target} has {MOST_PEERS} peers")
            return there
        if len(self._payers.get(self._identify(request.client), ())) >= self.limits.per_client:
            raise Refusal("quota", f"{request.client} has {self.limits.per_client} mappings (portmap.per_client)")
        if len(self._mappings) >= MOST:
            raise Refusal("full", f"there are {MOST} mappings")
        return None

    def granted(self, request: MappingRequest) -> int:
        """The lifetime that a request gets, in seconds."""
        if request.holder == "upnp":
            wanted = request.lifetime if request.lifetime > 0 else self.limits.permanent
            return int(max(1, min(wanted, self.limits.permanent)))
        low, high = self.limits.lifetime
        return int(max(low, min(request.lifetime, high)))

    def suggestion(self, request: MappingRequest) -> int:
        """The public port to ask the broker for, unless the mapping is there: what the client wants; or the number that
        its socket has for the other transport; or the inside port's own number."""
        other: Transport = "udp" if request.transport == "tcp" else "tcp"
        companion = self._mappings.get((request.client, other, request.port))
        if request.suggested_port:
            return request.suggested_port
        return companion.public.port if companion is not None else request.port

    def is_companions(self, request: MappingRequest, public: Endpoint) -> bool:
        """Whether another client has the other transport of a public port. A client that does not insist on that port
        then gets another one, so that one port number is one client's (RFC 6886 section 3.3)."""
        there = self._public.get(("udp" if request.transport == "tcp" else "tcp", public))
        return there is not None and there.client != request.client

    # --- what is held -----------------------------------------------------------------------------------------------

    def wanted(self, request: MappingRequest, now: float) -> Hold:
        """Return the hold that a request is to have: with the filters of before, if it says nothing of them."""
        there = self._mappings.get(request.key)
        before = there.holds.get(request.name) if there is not None else None
        filters = request.filters if request.filters is not None else before.filters if before is not None else ()
        hold = Hold(request.holder, request.credential, now + self.granted(request), filters=filters, peer=request.peer)
        hold.description = clean(request.description) or (before.description if before is not None else "")
        if before is not None:
            hold.lease, hold.leased = before.lease, before.leased
        return hold

    def hold(self, request: MappingRequest, public: Endpoint, hold: Hold, above: Endpoint | None = None) -> Mapping:
        """Note that the broker has opened `public` for a request, or renewed it: `hold` is what its protocol has of it
        from now on, and `above` what the router above gives. Returns the mapping."""
        mapping = self._mappings.get(request.key)
        new = mapping is None
        if mapping is None:
            mapping = self._add(Mapping(request.client, request.transport, request.port, public))
        elif mapping.public != public:
            self._move(mapping, public)
        mapping.above = above
        mapping.holds[request.name] = hold
        self._tell(MappingEvent("opened" if new else "renewed", request.holder, mapping))
        return mapping

    def restore(self, mapping: Mapping) -> None:
        """Add a mapping that is open already, with its holds. Listeners are not called."""
        self._add(mapping)

    def release(self, key: MappingKey, name: str, credential: str = "") -> Hold:
        """End a hold, and return it (its lease is to be closed). The mapping ends with the last one. Raises Refusal
        "none" or "foreign"."""
        mapping = self._mappings.get(key)
        hold = mapping.holds.get(name) if mapping is not None else None
        if mapping is None or hold is None:
            raise Refusal("none", f"{key[0]} has no such mapping")
        if hold.credential != credential:
            raise Refusal("foreign", f"{mapping.target} is held by another credential")
        self._end(mapping, hold, hold.holder)
        return hold

    def drop(self, mapping: Mapping, hold: Hold, by: str) -> None:
        """End a hold whose lease is closed already, if it is still there."""
        if mapping.holds.get(hold.name) is hold:
            self._end(mapping, hold, by)

    def expire(self, now: float) -> list[Hold]:
        """End the holds that are past their time, and return them. Their leases are to be closed."""
        ended = []
        for mapping in list(self._mappings.values()):
            for hold in list(mapping.holds.values()):
                if hold.expires <= now:
                    self._end(mapping, hold, "expiry")
                    ended.append(hold)
        return ended

    def moved(self, mapping: Mapping, public: Endpoint, by: str) -> None:
        """Note that a mapping has another public endpoint now."""
        self._move(mapping, public)
        self._tell(MappingEvent("moved", by, mapping))

    def raised(self, mapping: Mapping, above: Endpoint | None) -> None:
        """Note the public endpoint that the router above gives for a mapping; None: it gives none."""
        mapping.above = above
        self._tell(MappingEvent("moved", "upstream", mapping))

    def address_changed(self) -> None:
        """Tell the listeners that this router has another public address."""
        self._tell(MappingEvent("address", "address"))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, mapping: Mapping) -> Mapping:
        self._mappings[mapping.key] = mapping
        self._clients.setdefault(mapping.client, {})[mapping.key] = mapping
        payer = self._paid_by[mapping.key] = self._identify(mapping.client)
        self._payers.setdefault(payer, set()).add(mapping.key)
        self._public[mapping.transport, mapping.public] = mapping
        return mapping

    def _move(self, mapping: Mapping, public: Endpoint) -> None:
        if self._public.get((mapping.transport, mapping.public)) is mapping:
            del self._public[mapping.transport, mapping.public]
        mapping.public = public
        self._public[mapping.transport, public] = mapping

    def _end(self, mapping: Mapping, hold: Hold, by: str) -> None:
        del mapping.holds[hold.name]
        if mapping.holds:
            self._tell(MappingEvent("renewed", by, mapping))
            return
        del self._mappings[mapping.key]
        _take_out(self._clients, mapping.client, mapping.key)
        payer = self._paid_by.pop(mapping.key)  # its address may have got another identity meanwhile
        self._payers[payer].discard(mapping.key)
        if not self._payers[payer]:
            del self._payers[payer]
        if self._public.get((mapping.transport, mapping.public)) is mapping:
            del self._public[mapping.transport, mapping.public]
        self._tell(MappingEvent("closed", by, mapping))

    def _tell(self, event: MappingEvent) -> None:
        for listener in self.listeners:
            listener(event)


def hold_name(holder: HolderName, peer: str = "") -> str:
    """Return what a hold is known by in its mapping."""
    return f"{holder} {peer}" if peer else holder


def clean(text: str) -> str:
    """Return what may be kept of a description: printable characters, 256 at most."""
    return "".join(char for char in text[: 4 * _TEXT] if char.isprintable())[:_TEXT].strip()


def _take_out(clients: dict[str, dict[MappingKey, Mapping]], client: str, key: MappingKey) -> None:
    del clients[client][key]
    if not clients[client]:
        del clients[client]


def _check_filters(filters: tuple[str, ...], version: int) -> None:
    if len(filters) > MOST_PEERS:
        raise Refusal("filters", f"{len(filters)} filters, and {MOST_PEERS} is the most", 1800)
    networks = [ipaddress.ip_network(text) for text in filters]
    if any(network.version != version for network in networks):
        raise Refusal("filters", "a filter is of the other family than the client", 1800)

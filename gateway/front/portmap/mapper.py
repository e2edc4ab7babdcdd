"""Carries out what clients ask for: asks the rules, the table (table.py) and the broker, and keeps what is open open.

`PortMapper` is what the fronts of the protocols use, from greenlets: `map` and `unmap` wait for the broker.

- A hold is a lease of the broker, 7,200 s long at most, which is renewed here as long as the hold lasts. When every
  process is dead, the kernel ends it.
- What is open is written to a journal at once. A successor finds it there, and each lease in the kernel or opens it
  again. `epoch` goes on as long as nothing was lost (RFC 6887 section 8.5).
- When this router's public address changes, the mappings are opened again there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import gevent
import msgspec
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from alg.address import Endpoint
from alg.bucket import Rate
from gateway.front.packets.journal import Journal, Stored
from gateway.front.portmap.table import Event, Hold, Holder, Key, Mapping, MappingTable, Refusal, Request, Why
from gateway.lease.validate import LONGEST_CONVERSATION
from gateway.model.errors import PinholeRefused
from gateway.model.requests import (
    ConnectRequest,
    Lease,
    Network,
    PinholeRequest,
    PinholeUpdate,
    Transport,
)
from gateway.net.addresses import PublicAddress, is_private
from gateway.observe.counters import count
from gateway.observe.log import get_logger
from gateway.policy.decide import Decision
from gateway.policy.limits import LimitReached, RuleLimits, Session

REQUESTS, BURST = 10.0, 30.0
"""Requests of one host that are carried out in a second, on average and at once."""

MOST_WAITING = 32  # requests of one client that wait for their turn
LOOK = 2.0  # seconds between looks at the public address, and at what the broker still has
RENEW_AT = LONGEST_CONVERSATION / 2  # seconds before its end at which a lease is renewed
AT_A_TIME = 16  # leases that are restored at the same time
PER_LOOK = 1024  # leases that one look asks for
_ATTEMPTS = 4  # questions to a broker that does not answer, when leases are restored

_WHY: dict[str, Why] = {
    "wish": "taken", "taken": "taken", "ports": "full", "quota": "quota", "rate": "rate", "full": "full",
    "share": "full", "port": "inside_port", "peers": "filters", "public": "outside", "client": "denied",
}  # fmt: skip

log = get_logger()


class Broker(Protocol):
    """What is asked of the broker (gateway.pinhole.client.BrokerClient). Each may raise PinholeRefused."""

    def open(self, request: PinholeRequest) -> Lease: ...

    def update(self, update: PinholeUpdate) -> Lease: ...

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]: ...

    def close(self, lease_id: str) -> None: ...


class Setting(msgspec.Struct, frozen=True):
    """`inside`: the networks of clients. `masquerade`: families whose inside addresses are translated, though the world
    could reach them. `restore`: whether the broker puts back what others remove."""

    inside: Sequence[Network]
    masquerade: frozenset[str] = frozenset()
    restore: bool = True


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """A mapping in the journal. Times are monotonic; `at` is the pair of clocks that they are read with."""

    client: str
    transport: Transport
    port: int
    public: str
    public_port: int
    holds: tuple[tuple[Holder, str, float, str, float, tuple[str, ...], str], ...]


class _Clock(msgspec.Struct, array_like=True, frozen=True):
    """When the epoch began, in the monotonic time of a boot, and what both clocks said then."""

    boot: str
    begun: float
    monotonic: float
    unix: float


_MODULE, _CLOCK = "portmap", "clock"


class PortMapper:
    """Opens, renews and ends mappings.

    `public`: the address of this router that the world sees, by family; None: it has none now. `decide`: the rules.
    `journal`: what a predecessor has left, and where a successor looks. `boot`: the id of this boot of the host.
    """

    def __init__(
        self,
        table: MappingTable,
        broker: Broker,
        public: Callable[[int], PublicAddress | None],
        decide: Callable[[ConnectRequest], Decision],
        setting: Setting,
        journal: Journal,
        boot: str = "",
    ) -> None:
        self.table = table
        self.refused: Counter[str] = Counter()
        self._broker = broker
        self._public = public
        self._decide = decide
        self._setting = setting
        self._journal = journal
        self._boot = boot
        self._limits = RuleLimits()
        self._sessions: dict[Key, Session] = {}
        self._rate = Rate(REQUESTS, BURST)
        self._turns: dict[str, BoundedSemaphore] = {}
        self._waiting: Counter[str] = Counter()
        self._known: dict[int, PublicAddress | None] = {}
        self._begun = time.monotonic()  # of the epoch
        self._looked = 0
        self.restarted: list[Callable[[], None]] = []
        """Called when the epoch has begun again, because mappings were lost or the address has changed."""
        table.listeners.append(self._on_event)

    # --- what fronts ask for ----------------------------------------------------------------------------------------

    def is_inside(self, host: str) -> bool:
        """Whether an address is that of a client."""
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._setting.inside)

    def may_ask(self, host: str) -> bool:
        """Whether a host may be answered now: it is inside, and does not ask too fast. Each question counts."""
        if not self.is_inside(host):
            return False
        if self._rate.take(host, time.monotonic()):
            return True
        self.refused["rate"] += 1
        count("algate_portmap_dropped_total")
        return False

    def external(self, version: int) -> str | None:
        """Return the public address of this router, as clients are told it; None if it has none of this family now."""
        public = self._public(version)
        return None if public is None else public.advertised

    def translates(self, client: str) -> bool:
        """Whether a client's addresses are translated. Otherwise its own address and port are the public ones."""
        return is_private(client) or ("ipv6" if ":" in client else "ipv4") in self._setting.masquerade

    @property
    def epoch(self) -> int:
        """Seconds since what clients have was last lost (RFC 6887 section 8.5, RFC 6886 section 3.6)."""
        return int(time.monotonic() - self._begun)

    def map(self, request: Request) -> Mapping:
        """Open or renew a mapping, and wait for the broker. `Mapping.public` is what the client is told, and
        `Mapping.left(holder, now)` for how long. Raises Refusal."""
        try:
            with self._turn(request.client):
                mapping = self._map(request)
        except Refusal as refusal:
            self._say(request, refusal)
            raise
        count("algate_portmap_requests_total", request.holder, "granted")
        return mapping

    def unmap(self, key: Key, holder: Holder, credential: str = "") -> None:
        """End a hold. Raises Refusal "none" or "foreign"."""
        with self._turn(key[0]):
            self._broker.close(self.table.release(key, holder, credential).lease)
        count("algate_portmap_requests_total", holder, "deleted")

    def packets(self, mapping: Mapping) -> int:
        """Return how many packets have come in through a mapping, as the broker counts; 0 if it does not answer."""
        leases = [hold.lease for hold in mapping.holds.values() if hold.lease]
        try:
            return sum(came for came, _ in self._broker.count(leases).values())
        except PinholeRefused:
            return 0

    def unmap_all(
        self, client: str, holder: Holder, transport: Transport | None = None, credential: str | None = None
    ) -> int:
        """End all holds of a client by one protocol: those of `transport` (None: of both), and with `credential` (None:
        with any). Returns how many there were."""
        ended = 0
        with self._turn(client):
            for mapping in self.table.of_client(client, holder):
                hold = mapping.holds[holder]
                if transport in (None, mapping.transport) and credential in (None, hold.credential):
                    self._broker.close(self.table.release(mapping.key, holder, hold.credential).lease)
                    ended += 1
        return ended

    # --- one request ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _turn(self, client: str) -> Iterator[None]:
        """One request of a client after the other. Raises Refusal if too many wait."""
        if self._waiting[client] >= MOST_WAITING:
            raise Refusal("rate", f"{MOST_WAITING} requests of {client} wait")
        lock = self._turns.setdefault(client, BoundedSemaphore())
        self._waiting[client] += 1
        try:
            with lock:
                yield
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
                self._turns.pop(client, None)

    def _map(self, request: Request) -> Mapping:
        there = self.table.check(request)
        public = self._public_of(request.client)
        self._check_wish(request, public, there)
        self._permit(request, there)
        hold = there.holds.get(request.holder) if there is not None else None
        now = time.monotonic()
        ttl = float(min(self.table.granted(request), LONGEST_CONVERSATION))
        try:
            if hold is not None:
                with contextlib.suppress(_Gone):
                    return self._renew(request, hold, ttl)
            lease = self._open(request, public, there, ttl)
        except PinholeRefused as refusal:
            if there is None:
                self._leave(request.key)
            raise Refusal(_WHY.get(refusal.rule, "kernel"), f"{refusal.rule}: {refusal.detail}") from refusal
        told = lease.public if public is None else Endpoint(public.advertised, lease.public.port)
        return self.table.hold(request, told, lease.id, now + ttl, now)

    def _public_of(self, client: str) -> PublicAddress | None:
        """Return where mappings of a client are; None: at its own address, as nothing is translated."""
        if not self.translates(client):
            return None
        public = self._public(6 if ":" in client else 4)
        if public is None:
            raise Refusal("outside", "this router has no public address of this family now")
        return public

    def _check_wish(self, request: Request, public: PublicAddress | None, there: Mapping | None) -> None:
        if not request.exact:
            return
        host = request.client if public is None else public.advertised
        if request.wish_host not in (None, host):
            raise Refusal("address", f"the public address is {host}, not {request.wish_host}")
        port = there.public.port if there is not None else request.port if public is None else None
        if request.wish_port and port is not None and port != request.wish_port:
            raise Refusal("taken", f"{request.client}:{request.port} has the public port {port}")

    def _permit(self, request: Request, there: Mapping | None) -> None:
        """Ask the rules, and count the mapping for the rule that permits it."""
        asked = ConnectRequest("map", Endpoint(request.client, request.port), request.client, request.port)
        decision = self._decide(asked)
        if not decision.permit:
            raise Refusal("denied", f"by {decision.rule}", 1800)
        if there is not None and request.key in self._sessions:
            return
        try:
            session = self._limits.enter(decision, request.client, time.monotonic())
        except LimitReached as limit:
            raise Refusal("denied", f"{decision.rule}: {limit}") from limit
        self._leave(request.key)
        self._sessions[request.key] = session

    def _leave(self, key: Key) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            session.release()

    def _renew(self, request: Request, hold: Hold, ttl: float) -> Mapping:
        """Raises _Gone if the lease is no more."""
        now = time.monotonic()
        peers = msgspec.UNSET if request.filters in (None, hold.filters) else _peers(request.filters)
        try:
            self._broker.update(PinholeUpdate(hold.lease, ttl=ttl, peers=peers))
        except PinholeRefused as refusal:
            if refusal.rule == "lease":
                raise _Gone from refusal
            raise
        mapping = self.table.find(request.key)
        assert mapping is not None
        return self.table.hold(request, mapping.public, hold.lease, now + ttl, now)

    def _open(self, request: Request, public: PublicAddress | None, there: Mapping | None, ttl: float) -> Lease:
        wish = there.public.port if there is not None else self.table.wish(request)
        local = None if public is None else public.local
        new = there is None and public is not None and not request.exact
        if new and public is not None and self.table.is_companions(request, Endpoint(public.advertised, wish)):
            wish = 0
        hold = Hold(request.holder, request.credential, 0.0, filters=request.filters or ())
        return self._broker.open(
            _pinhole(request.key, hold, local, wish if public is not None else 0, request.exact, ttl)
        )

    def _say(self, request: Request, refusal: Refusal) -> None:
        self.refused[refusal.why] += 1
        count("algate_portmap_requests_total", request.holder, refusal.why)
        log.warning(
            "portmap.refused",
            client=request.client,
            protocol=request.transport,
            port=request.port,
            wish=request.wish_port,
            holder=request.holder,
            why=refusal.why,
            detail=refusal.detail[:200],
        )

    # --- what was open before ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Go on with what a predecessor has left in the journal. Waits for the broker."""
        clock: _Clock | None = None
        stored: list[_Stored] = []
        for one in self._journal.found:
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                if one.key == _CLOCK:
                    clock = msgspec.msgpack.decode(one.record or b"", type=_Clock)
                else:
                    stored.append(msgspec.msgpack.decode(one.record or b"", type=_Stored))
        if clock is None:
            self._restart("begin")
            return
        # The monotonic clock goes on over processes, but not over a boot: there the wall clock has to do.
        now, shift = time.monotonic(), 0.0
        if clock.boot != self._boot:
            shift = (now - time.time()) - (clock.monotonic - clock.unix)
        pool = Pool(AT_A_TIME)
        found = [greenlet.get() for greenlet in [pool.spawn(self._recover, one, shift) for one in stored]]
        if clock.boot == self._boot and all(found):
            self._begun = clock.begun
            self._write_clock()
        else:
            self._restart("lost")
        log.info("portmap.recovered", mappings=len(self.table), lost=found.count(False))

    def _recover(self, stored: _Stored, shift: float) -> bool:
        """Returns whether the client has what it had."""
        key = stored.client, stored.transport, stored.port
        now = time.monotonic()
        holds = [
            Hold(holder, credential, expires + shift, lease, leased + shift, filters, description)
            for holder, credential, expires, lease, leased, filters, description in stored.holds
        ]
        holds = [hold for hold in holds if hold.expires > now + 1.0]
        asked = ConnectRequest("map", Endpoint(stored.client, stored.port), stored.client, stored.port)
        decision = self._decide(asked)
        if not holds or not decision.permit or not self.is_inside(stored.client):
            for hold in holds:
                self._broker.close(hold.lease)
            self._journal.put([Stored(_MODULE, _name(key))])
            return not holds
        public = None
        with contextlib.suppress(Refusal):
            public = self._public_of(stored.client)
        before = Endpoint(stored.public, stored.public_port)
        host = stored.client if public is None else public.advertised
        mapping = Mapping(stored.client, stored.transport, stored.port, before)
        if public is not None and host != before.host:  # the address has changed meanwhile
            for hold in holds:
                self._broker.close(hold.lease)
                hold.lease = ""
        for hold in holds:
            ttl = min(hold.expires - now, LONGEST_CONVERSATION)
            lease = self._reopen(key, hold, public, before.port, ttl, exact=host == before.host)
            if lease is not None:
                hold.lease, hold.leased = lease.id, now + ttl
                mapping.public = Endpoint(host, lease.public.port)
                mapping.holds[hold.holder] = hold
        if not mapping.holds:
            self._journal.put([Stored(_MODULE, _name(key))])
            return False
        with contextlib.suppress(LimitReached):
            self._sessions[key] = self._limits.enter(decision, stored.client, now)
        self.table.restore(mapping)
        self._write(mapping)
        return mapping.public == before and len(mapping.holds) == len(holds)

    def _reopen(
        self, key: Key, hold: Hold, public: PublicAddress | None, port: int, ttl: float, exact: bool
    ) -> Lease | None:
        """Renew a lease, or open it anew; None: it is not to be had any more."""
        for _ in range(_ATTEMPTS):
            try:
                if hold.lease:
                    return self._broker.update(PinholeUpdate(hold.lease, ttl=ttl))
                local = None if public is None else public.local
                return self._broker.open(_pinhole(key, hold, local, port if public is not None else 0, exact, ttl))
            except PinholeRefused as refusal:
                if refusal.rule == "lease" and hold.lease:
                    hold.lease = ""
                elif refusal.rule == "rate":
                    gevent.sleep(0.2)
                elif refusal.rule != "broker":
                    log.warning("portmap.lost", client=key[0], protocol=key[1], port=key[2], detail=str(refusal)[:200])
                    return None
        return None

    # --- time goes on -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Renew, expire and look, until the greenlet is killed."""
        next_look = 0.0
        while True:
            now = time.monotonic()
            for hold in self.table.expire(now):
                self._broker.close(hold.lease)
            self._extend(now)
            if now >= next_look:
                self.look()
                next_look = time.monotonic() + LOOK
            gevent.sleep(0.5)

    def _extend(self, now: float) -> None:
        """Renew leases that end before their holds."""
        for mapping in self.table:
            for hold in list(mapping.holds.values()):
                if hold.leased < hold.expires - 1.0 and hold.leased - now < RENEW_AT:
                    ttl = min(hold.expires - now, LONGEST_CONVERSATION)
                    with contextlib.suppress(PinholeRefused):  # what is gone, `look` finds
                        self._broker.update(PinholeUpdate(hold.lease, ttl=ttl))
                        hold.leased = now + ttl
                        self._write(mapping)

    def look(self) -> None:
        """Look for a changed public address, and for leases that the broker has no more."""
        for version in (4, 6):
            public = self._public(version)
            before = self._known.get(version)
            if public is not None:
                self._known[version] = public
                if before is None:
                    self._warn_of_double_nat(public)
                elif before != public:
                    self._move(version, public)
        self._find_lost()

    def _warn_of_double_nat(self, public: PublicAddress) -> None:
        if is_private(public.advertised):
            log.warning("portmap.double_nat", address=public.advertised)

    def _move(self, version: int, public: PublicAddress) -> None:
        """Open all mappings of a family again at another address."""
        log.warning("portmap.address", address=public.advertised, mappings=len(self.table))
        for mapping in self.table:
            if (":" in mapping.client) != (version == 6) or not self.translates(mapping.client):
                continue
            with contextlib.suppress(Refusal), self._turn(mapping.client):
                if self.table.find(mapping.key) is mapping:
                    self._move_one(mapping, public)
        self._restart("address")
        self.table.address_changed()

    def _move_one(self, mapping: Mapping, public: PublicAddress) -> None:
        now = time.monotonic()
        holds = list(mapping.holds.values())
        for hold in holds:
            self._broker.close(hold.lease)
            hold.lease = ""
        for hold in holds:
            ttl = max(1.0, min(hold.expires - now, LONGEST_CONVERSATION))
            lease = self._reopen(mapping.key, hold, public, mapping.public.port, ttl, exact=False)
            if lease is None:
                self.table.release(mapping.key, hold.holder, hold.credential)
                continue
            hold.lease, hold.leased = lease.id, now + ttl
            self.table.moved(mapping, Endpoint(public.advertised, lease.public.port), "address")

    def _find_lost(self) -> None:
        """End the holds whose leases are open no more: `algate kick` closed them, or a flush that is not undone."""
        leases = [hold.lease for mapping in self.table for hold in mapping.holds.values()]
        if len(leases) > PER_LOOK:
            self._looked = (self._looked + PER_LOOK) % len(leases)
            leases = (leases + leases)[self._looked : self._looked + PER_LOOK]
        if not leases:
            return
        try:
            open_now = self._broker.count(leases)
        except PinholeRefused:
            return  # the broker is being replaced
        there = {hold.lease for mapping in self.table for hold in mapping.holds.values()}
        gone = [lease for lease in leases if lease not in open_now and lease in there]
        for lease in gone:
            self.table.drop(lease, "kick" if self._setting.restore else "lost")
            log.warning("portmap.gone", lease=lease)
        if gone and not self._setting.restore:
            self._restart("lost")

    # --- the journal ------------------------------------------------------------------------------------------------

    def _restart(self, why: str) -> None:
        """The epoch begins again: clients have to ask again for what they have."""
        self._begun = time.monotonic()
        self._write_clock()
        log.info("portmap.epoch", reason=why)
        for call in self.restarted:
            call()

    def _write_clock(self) -> None:
        clock = _Clock(self._boot, self._begun, time.monotonic(), time.time())
        self._journal.put([Stored(_MODULE, _CLOCK, msgspec.msgpack.encode(clock))])

    def _on_event(self, event: Event) -> None:
        if event.mapping is None:
            return
        if event.what == "closed":
            self._leave(event.mapping.key)
            self._journal.put([Stored(_MODULE, _name(event.mapping.key))])
        else:
            self._write(event.mapping)

    def _write(self, mapping: Mapping) -> None:
        holds = tuple(
            (h.holder, h.credential, h.expires, h.lease, h.leased, h.filters, h.description)
            for h in mapping.holds.values()
        )
        public = mapping.public
        stored = _Stored(mapping.client, mapping.transport, mapping.port, public.host, public.port, holds)
        self._journal.put([Stored(_MODULE, _name(mapping.key), msgspec.msgpack.encode(stored))])


class _Gone(Exception):
    """The lease of a hold is no more."""


def _pinhole(key: Key, hold: Hold, local: str | None, wish: int, exact: bool, ttl: float) -> PinholeRequest:
    client, transport, port = key
    return PinholeRequest(
        flow=f"{hold.holder}-{hold.credential}" if hold.credential else hold.holder,
        reason=f"map.{hold.holder}",
        client=client,
        direction="in",
        transport=transport,
        target=Endpoint(client, port),
        peer=None,
        public_host=local,
        ttl=max(1.0, math.floor(ttl)),
        kind="mapping",
        peers=_peers(hold.filters),
        wish=wish or None,
        exact=bool(exact and wish),
    )


def _peers(filters: Sequence[str] | None) -> tuple[str, ...] | None:
    """Filters as the broker takes them: none within another one; None: everybody."""
    if not filters:
        return None
    v4 = [ipaddress.IPv4Network(text) for text in filters if ":" not in text]
    v6 = [ipaddress.IPv6Network(text) for text in filters if ":" in text]
    return tuple(map(str, (*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6))))


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]} {key[2]}"

"""Carries out what clients ask for: asks the rules, the table (table.py) and the broker, and keeps what is open open.

`PortMapper` is what the fronts of the protocols use, from greenlets: `map` and `unmap` wait for the broker.

- A hold is a lease of the broker, 7,200 s long at most, which is renewed here as long as the hold lasts (leases.py).
  When every process is dead, the kernel ends it.
- What is open is written to a journal at once (memory.py). A successor finds it there, and each lease in the kernel or
  opens it again. The epoch goes on as long as nothing was lost (RFC 6887 section 8.5).
- When this router's public address changes, the mappings are opened again there.
- Behind another NAT the router above is asked for each mapping, too, if the operator wants that (upstream.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import gevent
import msgspec
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from alg.address import Endpoint
from alg.bucket import Rate
from gateway.front.portmap.leases import LeaseGone, Leases
from gateway.front.portmap.memory import Memory
from gateway.front.portmap.permits import Permits
from gateway.front.portmap.table import (
    Hold,
    HolderName,
    Mapping,
    MappingKey,
    MappingRequest,
    MappingTable,
    Refusal,
    Why,
)
from gateway.front.portmap.upstream import RouterAbove
from gateway.lease.validate import LONGEST_CONVERSATION
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, Network, Transport
from gateway.net.addresses import PublicAddress, is_private
from gateway.observe.counters import count
from gateway.observe.log import get_logger

REQUESTS, BURST = 10.0, 30.0
"""The requests of one host that are carried out in a second, on average and at once."""

MOST_WAITING = 32  # requests of one client that wait for their turn
TICK = 0.5  # seconds between looks at what is due
LOOK = 2.0  # seconds between looks at the public address, and at what the broker still has
RENEW_AT = LONGEST_CONVERSATION / 2  # seconds before its end at which a lease is renewed
AT_A_TIME = 16  # leases that are restored at the same time
PER_LOOK = 1024  # leases that one look asks for

_WHY: dict[str, Why] = {
    "wish": "taken", "taken": "taken", "ports": "full", "quota": "quota", "rate": "rate", "full": "full",
    "share": "full", "port": "inside_port", "peers": "filters", "public": "outside", "client": "denied",
}  # fmt: skip

log = get_logger()


class MapperSetting(msgspec.Struct, frozen=True):
    """`inside`: the networks of clients. `masquerade`: families whose inside addresses are translated, though the world
    could reach them. `restore`: whether the broker puts back what others remove."""

    inside: Sequence[Network]
    masquerade: frozenset[str] = frozenset()
    restore: bool = True


class PortMapper:
    """Opens, renews and ends mappings.

    `public`: the address of this router that the world sees, by family; None: it has none now. `identify`: which
    addresses are one host, for the rate.
    """

    def __init__(
        self,
        table: MappingTable,
        leases: Leases,
        public: Callable[[int], PublicAddress | None],
        permits: Permits,
        setting: MapperSetting,
        memory: Memory,
        identify: Callable[[str], str],
    ) -> None:
        self.table = table
        self.upstream: RouterAbove | None = None  # whoever makes this one sets it, if the router above is to be asked
        self.refused: Counter[str] = Counter()
        self._leases = leases
        self._public = public
        self._permits = permits
        self._setting = setting
        self._memory = memory
        self._identify = identify
        self._rate = Rate(REQUESTS, BURST)
        self._locks: dict[str, BoundedSemaphore] = {}
        self._waiting: Counter[str] = Counter()
        self._known: dict[int, PublicAddress] = {}
        self._looked = 0  # of how many leases the last look has asked, where there are many
        table.listeners += [permits.on_event, memory.on_event]

    # --- what fronts ask for ----------------------------------------------------------------------------------------

    def is_inside(self, host: str) -> bool:
        """Whether an address is that of a client."""
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._setting.inside)

    def may_ask(self, host: str) -> bool:
        """Whether a host may be answered now: it is inside, and does not ask too fast. Each question counts."""
        if not self.is_inside(host):
            return False
        if self._rate.take(self._identify(host), time.monotonic()):
            return True
        self.refused["rate"] += 1
        count("algate_portmap_dropped_total")
        return False

    def external(self, version: int) -> str | None:
        """Return the public address of a family that clients are told: that of this router, or that of the router
        above. None if there is none now."""
        public = self._public(version)
        if public is None:
            return None
        above = self.upstream.external if self.upstream is not None and version == 4 else None
        return public.advertised if above is None else above

    def behind(self) -> str | None:
        """The IPv4 address of this router that another NAT translates; "": none does, as far as it can be seen; None:
        it has no address now."""
        public = self._public(4)
        if public is None:
            return None
        return public.local if is_private(public.advertised) else ""

    def translates(self, client: str) -> bool:
        """Whether a client's addresses are translated. If they are not, its own address and port are the public
        ones."""
        return is_private(client) or ("ipv6" if ":" in client else "ipv4") in self._setting.masquerade

    @property
    def epoch(self) -> int:
        """Seconds since what clients have was last lost (RFC 6887 section 8.5, RFC 6886 section 3.6)."""
        return self._memory.epoch

    def map(self, request: MappingRequest) -> Mapping:
        """Open or renew a mapping, and wait for the broker. `Mapping.shown` is what the client is told, and
        `Mapping.left(name, now)` for how long. Raises Refusal."""
        try:
            with self._locked(request.client):
                mapping = self._map(request)
        except Refusal as refusal:
            self._say(request, refusal)
            raise
        count("algate_portmap_requests_total", request.holder, "granted")
        return mapping

    def unmap(self, key: MappingKey, name: str, credential: str = "") -> None:
        """End the hold `name`. Raises Refusal "none" or "foreign"."""
        with self._locked(key[0]):
            ended = self.table.release(key, name, credential)
            self._leases.end([ended])
        count("algate_portmap_requests_total", ended.holder, "deleted")

    def packets(self, mapping: Mapping) -> int:
        """Return how many packets have come in through a mapping, as the broker counts; 0 if it does not answer."""
        leases = [hold.lease for hold in mapping.holds.values() if hold.lease]
        try:
            return sum(came for came, _ in self._leases.count(leases).values())
        except PinholeRefused:
            return 0

    def unmap_all(
        self, client: str, holder: HolderName, transport: Transport | None = None, credential: str | None = None
    ) -> int:
        """End all holds that a client has by one protocol. `transport`: only those of this transport (None: of both);
        `credential`: only those with it (None: with any). Returns their number."""
        ended = []
        with self._locked(client):
            for mapping in self.table.of_client(client, holder):
                hold = mapping.holds[holder]
                if transport in (None, mapping.transport) and credential in (None, hold.credential):
                    ended.append(self.table.release(mapping.key, holder, hold.credential))
            self._leases.end(ended)
        return len(ended)

    # --- one request ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, client: str) -> Iterator[None]:
        """One request of a client after the other. Raises Refusal if too many wait."""
        if self._waiting[client] >= MOST_WAITING:
            raise Refusal("rate", f"{MOST_WAITING} requests of {client} wait")
        lock = self._locks.setdefault(client, BoundedSemaphore())
        self._waiting[client] += 1
        try:
            with lock:
                yield
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
                self._locks.pop(client, None)

    def _map(self, request: MappingRequest) -> Mapping:
        there = self.table.check(request)
        public = self._public_of(request.client)
        self._check_suggestion(request, public, there)
        self._permits.enter(request.key)
        before = there.holds.get(request.name) if there is not None else None
        hold = self.table.wanted(request, time.monotonic())
        try:
            if there is not None and before is not None:
                above = self._above(request, there.public, there)
                with contextlib.suppress(LeaseGone):
                    self._leases.renew(hold, hold.filters if hold.filters != before.filters else None)
                    if there.holds.get(request.name) is before:  # it may have ended while the broker was asked
                        return self.table.hold(request, there.public, hold, above)
            lease = self._open(request, hold, public, there)
        except PinholeRefused as refusal:
            if self.table.find(request.key) is None:
                self._permits.leave(request.key)
            raise Refusal(_WHY.get(refusal.rule, "kernel"), f"{refusal.rule}: {refusal.detail}") from refusal
        here = lease.public if public is None else Endpoint(public.advertised, lease.public.port)
        if self.upstream is not None:
            self._note(request, here, hold, there)
        try:
            above = self._above(request, here, there)
        except Refusal:
            self._leases.close(hold)
            if (left := self.table.find(request.key)) is None:
                self._permits.leave(request.key)
                self._memory.forget(request.key)
            else:
                self._memory.write(left)
            raise
        return self.table.hold(request, here, hold, above)

    def _note(self, request: MappingRequest, here: Endpoint, hold: Hold, there: Mapping | None) -> None:
        """Write what is open here before the router above is asked, which may take seconds: a successor of this process
        would not know of it, nor could its client end it."""
        before, above = (there.holds, there.above) if there is not None else ({}, None)
        self._memory.write(Mapping(*request.key, here, {**before, request.name: hold}, above))

    def _above(self, request: MappingRequest, public: Endpoint, there: Mapping | None) -> Endpoint | None:
        """Return what the router above gives for a mapping; None: it is not asked. Raises Refusal."""
        if self.upstream is None:
            return None
        if there is not None and there.above is not None and there.public == public:
            return there.above
        return self.upstream.ask(request.key, public, request.exact, self.table.granted(request))

    def _public_of(self, client: str) -> PublicAddress | None:
        """Return where mappings of a client are; None: at its own address, as nothing is translated."""
        if not self.translates(client):
            return None
        public = self._public(6 if ":" in client else 4)
        if public is None:
            raise Refusal("outside", "this router has no public address of this family now")
        return public

    def _check_suggestion(self, request: MappingRequest, public: PublicAddress | None, there: Mapping | None) -> None:
        if not request.exact:
            return
        host = request.client if public is None else self.external(6 if ":" in request.client else 4)
        if request.suggested_host not in (None, host):
            raise Refusal("address", f"the public address is {host}, not {request.suggested_host}")
        port = there.shown.port if there is not None else request.port if public is None else None
        if request.suggested_port and port is not None and port != request.suggested_port:
            raise Refusal("taken", f"{request.client}:{request.port} has the public port {port}")

    def _open(self, request: MappingRequest, hold: Hold, public: PublicAddress | None, there: Mapping | None) -> Lease:
        suggested = there.public.port if there is not None else self.table.suggestion(request)
        new = there is None and public is not None and not request.exact
        if new and public is not None and self.table.is_companions(request, Endpoint(public.advertised, suggested)):
            suggested = 0
        return self._leases.open(request.key, hold, public, suggested, request.exact)

    def _say(self, request: MappingRequest, refusal: Refusal) -> None:
        self.refused[refusal.why] += 1
        count("algate_portmap_requests_total", request.holder, refusal.why)
        log.warning(
            "portmap.refused",
            client=request.client,
            protocol=request.transport,
            port=request.port,
            wish=request.suggested_port,
            holder=request.holder,
            why=refusal.why,
            detail=refusal.detail[:200],
        )

    # --- the router above ---------------------------------------------------------------------------------------------

    def give_up(self, mapping: Mapping) -> None:
        """End a mapping that the router above does not give any more."""
        for hold in list(mapping.holds.values()):
            self._leases.close(self.table.release(mapping.key, hold.name, hold.credential))

    def changed(self) -> None:
        """Begin a new epoch: what clients were told is not true any more, and they have to ask again."""
        self._memory.restart("upstream")
        self.table.address_changed()

    # --- what was open before ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Go on with what a predecessor has left. Waits for the broker."""
        if self._memory.is_first:
            self._memory.restart("begin")
            return
        pool = Pool(AT_A_TIME)
        greenlets = [pool.spawn(self._recover, mapping) for mapping in self._memory.found]
        found = [greenlet.get() for greenlet in greenlets]
        if all(found):
            self._memory.go_on()
        else:
            self._memory.restart("lost")
        log.info("portmap.recovered", mappings=len(self.table), lost=found.count(False))

    def _recover(self, mapping: Mapping) -> bool:
        """Returns whether the client has what it had."""
        key, before, now = mapping.key, mapping.public, time.monotonic()
        holds = [hold for hold in mapping.holds.values() if hold.expires > now + 1.0]
        mapping.holds = {}
        if not holds or not self._may_keep(key):
            for hold in holds:
                self._leases.close(hold)
            self._memory.forget(key)
            return not holds
        try:
            public = self._public_of(mapping.client)
        except Refusal:
            self._keep(mapping, holds)
            return True
        host = before.host if public is None else public.advertised
        if host != before.host:  # it has changed meanwhile
            for hold in holds:
                self._leases.close(hold)
        for hold in holds:
            lease = self._leases.reopen(key, hold, public, before.port, exact=host == before.host)
            if lease is not None:
                mapping.public = Endpoint(host, lease.public.port)
                mapping.holds[hold.name] = hold
        if not mapping.holds:
            self._permits.leave(key)
            self._memory.forget(key)
            return False
        self.table.restore(mapping)
        self._memory.write(mapping)
        return mapping.public == before and len(mapping.holds) == len(holds)

    def _keep(self, mapping: Mapping, holds: Sequence[Hold]) -> None:
        """Keep a mapping while this router has no address of its family: what is open stays open, and all of it follows
        when there is an address again, if that is another one or something was lost."""
        version, host = 6 if ":" in mapping.client else 4, mapping.public.host
        for hold in holds:
            try:
                self._leases.renew(hold)
            except LeaseGone:
                hold.lease, host = "", ""
            except PinholeRefused:
                pass  # it does not answer; what is gone, `look` finds
            mapping.holds[hold.name] = hold
        if not host or version not in self._known:
            self._known[version] = PublicAddress(host, host)
        self.table.restore(mapping)
        self._memory.write(mapping)

    def _may_keep(self, key: MappingKey) -> bool:
        """Whether a client may still have what it has."""
        try:
            self._permits.enter(key)
        except Refusal:
            return False
        return self.is_inside(key[0])

    # --- time goes on -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Renew, expire and look, until the greenlet is killed."""
        next_look = 0.0
        while True:
            now = time.monotonic()
            for hold in self.table.expire(now):
                self._leases.close(hold)
            self._extend(now)
            if now >= next_look:
                self.look()
                next_look = time.monotonic() + LOOK
            gevent.sleep(TICK)

    def _extend(self, now: float) -> None:
        """Renew leases that end before their holds."""
        for mapping in self.table:
            for hold in list(mapping.holds.values()):
                if hold.lease and hold.leased < hold.expires - 1.0 and hold.leased - now < RENEW_AT:
                    with contextlib.suppress(PinholeRefused, LeaseGone):  # what is gone, `look` finds
                        self._leases.renew(hold)
                        self._memory.write(mapping)

    def look(self) -> None:
        """Check for a changed public address, and for leases that the broker does not have any more."""
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
        if self.upstream is None and is_private(public.advertised):
            log.warning("portmap.double_nat", address=public.advertised)

    def _move(self, version: int, public: PublicAddress) -> None:
        """Open all mappings of a family again at another address."""
        log.warning("portmap.address", address=public.advertised, mappings=len(self.table))
        self._leases.be_patient()
        for mapping in self.table:
            if (":" in mapping.client) != (version == 6) or not self.translates(mapping.client):
                continue
            with contextlib.suppress(Refusal), self._locked(mapping.client):
                if self.table.find(mapping.key) is mapping:
                    self._move_mapping(mapping, public)
        self._memory.restart("address")
        self.table.address_changed()

    def _move_mapping(self, mapping: Mapping, public: PublicAddress) -> None:
        holds = list(mapping.holds.values())
        for hold in holds:  # all of them: they share the public port, which is at the address of before
            self._leases.close(hold)
        for hold in holds:
            lease = self._leases.reopen(mapping.key, hold, public, mapping.public.port, exact=False)
            if lease is None:
                self.table.release(mapping.key, hold.name, hold.credential)
                continue
            self.table.moved(mapping, Endpoint(public.advertised, lease.public.port), "address")

    def _find_lost(self) -> None:
        """End the holds whose leases are not open any more, because `algate kick` closed them, or a flush was not
        undone. If there are many, a call checks a part of them; as long as some are lost, the next part follows at
        once."""
        held = {hold.lease: (mapping, hold) for mapping in self.table for hold in mapping.holds.values() if hold.lease}
        leases = list(held)
        if len(leases) > PER_LOOK:
            self._looked = (self._looked + PER_LOOK) % len(leases)
            leases = leases[self._looked :] + leases[: self._looked]
        lost = 0
        for at in range(0, len(leases), PER_LOOK):
            asked = leases[at : at + PER_LOOK]
            try:
                open_now = self._leases.count(asked)
            except PinholeRefused:
                break  # the broker is being replaced
            # Meanwhile a hold may have ended, or got another lease.
            gone = [lease for lease in asked if lease not in open_now and held[lease][1].lease == lease]
            for lease in gone:
                mapping, hold = held[lease]
                self.table.drop(mapping, hold, "kick" if self._setting.restore else "lost")
                client, transport, port = mapping.key
                log.warning(
                    "portmap.gone", lease=lease, client=client, protocol=transport, port=port, holder=hold.holder
                )
            lost += len(gone)
            if not gone:
                break
        if lost and not self._setting.restore:
            self._memory.restart("lost")

"""The broker's pinholes: what is open, and the kernel's table that makes it so. No sockets of workers here.

What is asked for waits until `flush`, so that many requests are one netfilter transaction. The kernel's table is the
journal: a new engine reads the leases back from it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.broker.elements import COUNTED, ONCE, elements_of, is_single, leases_of, once_of, traffic_of
from gateway.broker.limits import Limits
from gateway.broker.netfilter import Change, Netfilter, TableGoneError
from gateway.broker.netlink import NetfilterError
from gateway.broker.ports import can_bind
from gateway.broker.protocol import MOST_COUNTED, Count, Counted, Open, Opened, Refused, ToWorker, Update, Updated
from gateway.broker.stale import Stale
from gateway.broker.validate import SHORTEST_TTL, check_request, check_update, valid_lease_id
from gateway.errors import PinholeRefused
from gateway.model import Lease, PinholeRequest
from gateway.observe.admin_wire import Rows
from gateway.observe.log import get_logger
from gateway.observe.metrics import Sample
from gateway.pinhole.lease import NOTHING, LeaseTable, audit_fields, lease_row

RECONCILE = 1.0
"""Seconds between two looks at which pinholes the kernel has used up."""

_SOONEST_RECONCILE = 0.1  # seconds between two looks that full quotas ask for

Pending = tuple[int, int, Lease, float]
"""A lease that is not yet in the kernel: slot, id of the request, lease, ttl."""

log = get_logger()


class Engine:
    """All pinholes of one instance.

    `table`: its nft table. `send(slot, message)` gives a worker an answer; whether it took it.
    """

    def __init__(self, *, table: str, limits: Limits, send: Callable[[int, ToWorker], bool]) -> None:
        self.netfilter = Netfilter(table)
        self._inside = limits.inside
        self._leases = LeaseTable(backend="kernel", **limits.of_table())
        self._rng = random.SystemRandom()
        self._send = send
        self._opens: list[Pending] = []
        self._closes: list[tuple[int, Lease]] = []
        self.stale = Stale(self._leases.of_client)
        self._once: dict[str, tuple[str, bytes]] = {}  # where the kernel says whether a lease was used
        self._flowing: set[str] = set()  # conversations of which a packet was seen
        self._inherited: set[str] = set()  # leases of a worker that died, of which its successor said nothing yet
        self._next_reconcile = math.inf
        self._last_reconcile = -math.inf
        self._opened = self._refused = self._used = 0

    # --- beginning, passing and end of time -------------------------------------------------------------------------

    def load(self) -> None:
        """Make the table, or read back what is in it. Raises NetfilterError."""
        made = self.netfilter.load()
        unix = time.time()
        now = time.monotonic()
        for found in leases_of(self.netfilter.elements(), unix):
            self._leases.restore(found.lease, owner=found.slot, deadline=now + found.left, used=found.used)
        log.info("broker.table", table=self.netfilter.name, made=made, pinholes=len(self._leases))

    def shut_down(self) -> None:
        """Close everything and delete the table. Raises NetfilterError."""
        leases = self._leases.close_all(now=time.monotonic())
        for lease in leases:
            log.info("pinhole.close", by="stop", **audit_fields(lease))
        self.netfilter.unload()
        for lease in leases:
            self.stale.add(lease)
        self.stale.forget()
        log.info("broker.stopped", opened=self._opened, used=self._used, refused=self._refused)

    def configure(self, limits: Limits) -> int:
        """Other limits from now on. Pinholes of who is not inside any more are closed; how many those are."""
        self._inside = limits.inside
        self._leases.configure(**limits.of_table())
        return len(self._end("reload", lambda lease: not limits.has_inside(lease.client)))

    def kick(self, lease_id: str) -> Rows:
        """Close the pinhole with this id, whoever holds it; what was closed."""
        ended = self._end("kick", lambda lease: lease.id == lease_id)
        return [{"id": one.id, "kind": "pinhole", "client": one.client, "server": one.peer} for one in ended]

    def _end(self, by: str, unwanted: Callable[[Lease], bool]) -> list[Lease]:
        self.flush()  # what is on its way too
        ended = [(owner, lease) for owner, lease in self._leases.owned() if unwanted(lease)]
        for owner, lease in ended:
            self._leases.close(lease.id, now=time.monotonic())
            self._closing(owner, lease, by)
        return [lease for _, lease in ended]

    def deadline(self) -> float:
        """When (monotonic) `tick` has something to do; infinity: not before something is asked."""
        return min(self._leases.deadline() or math.inf, self._next_reconcile, self.stale.deadline())

    def tick(self) -> None:
        """Do what waits: a transaction, expiry, reconciliation. Raises NetfilterError if the table cannot be made."""
        self.flush()
        now = time.monotonic()
        self._expire(now)
        self.stale.tick()
        if not len(self._leases):
            self._next_reconcile = math.inf
        elif math.isinf(self._next_reconcile):
            self._next_reconcile = now + RECONCILE
        elif self._next_reconcile <= now:
            self.reconcile()

    def __len__(self) -> int:
        return len(self._leases)

    # --- what workers ask -------------------------------------------------------------------------------------------

    def open(self, slot: int, message: Open) -> None:
        """Check, choose a port, and open with the next `flush`, which answers; or refuse at once."""
        request = message.request
        try:
            check_request(request, self._inside)
            if request.direction == "out":
                self._replace(slot, request)
            try:
                lease = self._reserve(slot, request)
            except PinholeRefused as refusal:
                if refusal.rule == "taken":
                    self._disinherit(slot, request)
                elif refusal.rule in ("quota", "full"):
                    self._notice_used(request.visitor or request.client, refusal.rule)  # those do not count
                else:
                    raise
                lease = self._reserve(slot, request)
        except PinholeRefused as refusal:
            self._refuse(slot, message.id, request.client, request.reason, refusal)
            return
        self._opens.append((slot, message.id, lease, request.ttl))

    def update(self, slot: int, message: Update) -> None:
        """Change a conversation, and answer with the next `flush`."""
        self.flush()
        update = message.update
        old = self._leases.get(update.lease, owner=slot) if valid_lease_id(update.lease) else None
        try:
            if old is None:
                raise PinholeRefused("lease", "no open conversation of this worker")
            check_update(update, old, self._inside)
            new = self._leases.changed(update, unix=time.time(), owner=slot)
            now = time.monotonic()
            deadline = self._leases.deadline_of(old.id) if update.ttl is msgspec.UNSET else now + update.ttl
            try:
                # Deleted and added in one transaction: no packet meets a conversation half changed.
                delete = elements_of(old, slot, 1.0)
                add = elements_of(new, slot, max(deadline - now, SHORTEST_TTL))
                refused = self.netfilter.apply([Change(delete, self.netfilter.counted_on(add, delete))])
            except TableGoneError:
                self._table_gone()
                raise PinholeRefused("lease", "the ruleset was flushed") from None
            except NetfilterError as error:
                raise PinholeRefused("kernel", str(error)) from error
            if refused:
                raise PinholeRefused(refused[0].rule, str(refused[0]))
        except PinholeRefused as refusal:
            client, reason = (old.client, old.reason) if old is not None else ("", "")
            self._refuse(slot, message.id, client, reason, refusal)
            return
        self._leases.replace(new, deadline=deadline)
        self._inherited.discard(new.id)
        if (old.peers, old.target, old.second) != (new.peers, new.target, new.second):
            self.stale.add(old)
            self.stale.add(new)
        log.info("pinhole.update", slot=slot, **audit_fields(new))
        self._send(slot, Updated(message.id, new))

    def count(self, slot: int, message: Count) -> None:
        """Say how much has passed through conversations of this slot."""
        self.flush()
        counts = {}
        try:
            for lease_id in message.leases[:MOST_COUNTED]:
                lease = self._leases.get(lease_id, owner=slot)
                if lease is not None and lease.uses == 0:
                    traffic = traffic_of(self.netfilter.counted(elements_of(lease, slot, 1.0)))
                    counts[lease_id] = (traffic.packets_in, traffic.packets_out)
        except NetfilterError as error:
            log.warning("broker.count_failed", error=str(error))
        self._send(slot, Counted(message.id, counts))

    def close(self, slot: int, lease_id: str) -> None:
        """Close a lease of this slot with the next `flush`; of others, and what is no lease, nothing happens."""
        lease = None
        if valid_lease_id(lease_id):
            lease = self._leases.close(lease_id, now=time.monotonic(), owner=slot)
        if lease is not None:
            self._closing(slot, lease, "worker")

    def greet(self, slot: int, keep: bool) -> None:
        """Another worker sits in this slot: close all its leases with the next `flush`, or keep them for it."""
        self.flush()  # what the predecessor had asked for is its own
        if keep:
            self._inherited = {lease.id for lease in self._leases.of_owner(slot)}
            return
        for lease in self._leases.close_owner(slot, now=time.monotonic()):
            self._closing(slot, lease, "hello")

    def flush(self) -> None:
        """Close and open what waits, in one transaction, and answer."""
        if not self._opens and not self._closes:
            return
        closes, self._closes = self._closes, []
        opens, self._opens = self._opens, []
        changes = [Change(delete=elements_of(lease, slot, 1.0)) for slot, lease in closes]
        changes += [Change(add=elements_of(lease, slot, ttl)) for slot, _, lease, ttl in opens]
        try:
            try:
                refused = self.netfilter.apply(changes)
            except TableGoneError:
                self._table_gone(opens)
                refused = self.netfilter.apply(changes)
        except NetfilterError as error:
            log.error("broker.netfilter_failed", error=str(error), opens=len(opens), closes=len(closes))
            refused = dict.fromkeys(range(len(changes)), error)
        for _, lease in closes:
            self.stale.add(lease)
        for index, (slot, request_id, lease, _) in enumerate(opens, len(closes)):
            if index in refused:
                self._leases.close(lease.id, now=time.monotonic())
                refusal = PinholeRefused(refused[index].rule, str(refused[index]))
                self._refuse(slot, request_id, lease.client, lease.reason, refusal)
                # Nobody knows what the kernel did if it did not answer: what there may be of it must go.
                self._closes.append((slot, lease))
                continue
            self._opened += 1
            self.stale.add(lease)
            log.info("pinhole.open", slot=slot, **audit_fields(lease))
            if not self._send(slot, Opened(request_id, lease)) and self._leases.close(lease.id, now=time.monotonic()):
                self._closing(slot, lease, "unheard")

    def _reserve(self, slot: int, request: PinholeRequest) -> Lease:
        def is_free(port: int) -> bool:
            return can_bind(request.transport, request.public_host or "", port)

        return self._leases.open(
            request, now=time.monotonic(), unix=time.time(), rng=self._rng, is_free=is_free, owner=slot
        )

    def _notice_used(self, client: str, rule: str) -> None:
        """Find out what of a client, or of all, is used up. A few questions at most, as anybody can make us ask."""
        self.flush()
        if rule == "full":
            if time.monotonic() >= self._last_reconcile + _SOONEST_RECONCILE:
                self.reconcile()
            return
        try:
            for lease in self._leases.of_client(client):
                if is_single(lease) and not self.netfilter.has(*once_of(lease)):
                    self._use(lease)
        except NetfilterError as error:
            log.warning("broker.reconcile_failed", error=str(error))

    def _use(self, lease: Lease) -> None:
        self._leases.use(lease.id)
        self._used += 1
        log.info("pinhole.use", **audit_fields(lease))

    def _replace(self, slot: int, request: PinholeRequest) -> None:
        """An outbound pinhole has no port of ours that sets it apart: the same wish again takes the old one's place."""
        for lease in self._leases.of_client(request.client):
            if lease.direction == "out" and (lease.protocol, lease.target) == (request.transport, request.target):
                self.flush()
                if self._leases.close(lease.id, now=time.monotonic()) is not None:
                    self._closing(slot, lease, "replaced")
                    self.flush()

    def _disinherit(self, slot: int, request: PinholeRequest) -> None:
        """Close what a dead worker had opened for a socket, and its successor never heard of."""
        for lease in self._leases.of_client(request.client):
            shared = {lease.target.port, lease.second} & {request.target.port, request.second} - {None}
            if lease.id in self._inherited and lease.uses == 0 and shared:
                self.close(slot, lease.id)
        self.flush()

    def _closing(self, slot: int, lease: Lease, by: str) -> None:
        self._closes.append((slot, lease))
        self._once.pop(lease.id, None)
        self._flowing.discard(lease.id)
        log.info("pinhole.close", by=by, **audit_fields(lease))

    def _refuse(self, slot: int, request_id: int, client: str, reason: str, refusal: PinholeRefused) -> None:
        self._refused += 1
        log.warning(
            "pinhole.refused",
            slot=slot,
            client=client[:64],
            reason=reason[:64],
            rule=refusal.rule,
            detail=refusal.detail[:200],
        )
        self._send(slot, Refused(request_id, refusal.rule, refusal.detail[:200]))

    # --- what the kernel did ----------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Find out which pinholes were used: their `once` element is gone before its time, or packets were counted."""
        begun = self._last_reconcile = time.monotonic()
        try:
            once = {(element.set, element.key) for element in self.netfilter.glance(ONCE)}
        except TableGoneError:
            self._table_gone()
            return
        except NetfilterError as error:
            log.warning("broker.reconcile_failed", error=str(error))
            self._next_reconcile = begun + RECONCILE
            return
        now = time.monotonic()
        self._expire(now)
        for lease in self._leases.live():
            if is_single(lease) and self._once.setdefault(lease.id, once_of(lease)) not in once:
                self._use(lease)
        self.rows()
        # With thousands of pinholes the look takes long: never spend more than a tenth of the time on it.
        self._next_reconcile = now + max(RECONCILE, 10 * (now - begun))

    def rows(self) -> Rows:
        """The open pinholes, as of the last `reconcile`, and what has passed through conversations."""
        leases = self._leases.live()
        counted = {}
        if any(lease.uses == 0 for lease in leases):
            try:
                counted = {(element.set, element.key): element for element in self.netfilter.glance(COUNTED)}
            except NetfilterError as error:
                log.warning("broker.counters_failed", error=str(error))
        rows = []
        for lease in leases:
            traffic = NOTHING
            if lease.uses == 0:
                keys = [(element.set, element.key) for element in elements_of(lease, 0, 1.0)]
                traffic = traffic_of(counted[key] for key in keys if key in counted)
            if traffic.bytes and lease.id not in self._flowing:
                self._flowing.add(lease.id)
                log.info("pinhole.use", **audit_fields(lease))
            rows.append(lease_row(lease, traffic))
        return rows

    def status(self) -> dict[str, Any]:
        """How many pinholes there are and were."""
        counts = {"opened": self._opened, "used": self._used, "refused": self._refused}
        return {"table": self.netfilter.name, "pinholes": len(self._leases), **counts}

    def samples(self) -> list[Sample]:
        """The open pinholes, for the metrics. Ports that are only let through to a worker are the worker's."""
        return self._leases.samples()

    def _expire(self, now: float) -> None:
        expired = self._leases.expire(now)
        for lease in expired:
            self._once.pop(lease.id, None)
            self._flowing.discard(lease.id)
            log.info("pinhole.expire", **audit_fields(lease))
            self.stale.add(lease)

    def _table_gone(self, pending: Sequence[Pending] = ()) -> None:
        """Somebody flushed the ruleset: all leases are lost but those on their way; make the table again."""
        now = time.monotonic()
        coming = {lease.id for _, _, lease, _ in pending}
        for lease in self._leases.close_all(now=now):
            if lease.id not in coming:
                log.info("pinhole.close", by="flush", **audit_fields(lease))
        for slot, _, lease, ttl in pending:
            self._leases.restore(lease, owner=slot, deadline=now + ttl)
        log.error("broker.table_gone", table=self.netfilter.name)
        self.netfilter.load()

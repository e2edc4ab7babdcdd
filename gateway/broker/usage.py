"""Finds out what the kernel did with the pinholes: which were used up, and what has passed through conversations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from gateway.broker.elements import COUNTED, ONCE, elements_of, is_single, once_of, traffic_of
from gateway.broker.netfilter import Netfilter, TableGoneError
from gateway.broker.netlink import NetfilterError
from gateway.lease.table import NOTHING, LeaseTable, lease_row
from gateway.model.requests import Lease, Traffic
from gateway.observe.admin import Rows
from gateway.observe.log import get_logger
from gateway.observe.pinhole_log import PINHOLES as pinhole_log

LOOK = 1.0
"""Seconds between two polls."""

_SOONEST = 0.1  # seconds between two looks that full quotas ask for
_NEAR_THE_END = 0.1  # seconds: what is gone from the kernel that short before its time has run out there
_MOST_FLOWS = 64  # conversations that one poll asks for: no request is answered meanwhile

log = get_logger()


class Usage:
    """Polls the kernel's table, once a second and when asked. `gone` is called if the table does not exist any more."""

    def __init__(self, netfilter: Netfilter, leases: LeaseTable, gone: Callable[[], None]) -> None:
        self._netfilter = netfilter
        self._leases = leases
        self._gone = gone
        self._once: dict[str, tuple[str, bytes]] = {}  # where the kernel says whether a lease was used
        self._flowing: set[str] = set()  # conversations of which a packet was seen
        self._silent: dict[str, None] = {}  # the others, in the order in which they are asked for
        self._next = math.inf
        self._last = -math.inf
        self._took = 0.0  # seconds, the last look
        self.used = 0

    def deadline(self) -> float:
        """Return the time (monotonic) at which `tick` has something to do."""
        return self._next

    def tick(self, now: float) -> None:
        """Poll the table, if it is time and there are pinholes."""
        if not len(self._leases):
            self._next = math.inf
        elif math.isinf(self._next):
            self._next = now + LOOK
        elif self._next <= now:
            self.look()

    def opened(self, lease: Lease) -> None:
        """Start to watch a pinhole that was opened."""
        if not lease.single:
            self._silent[lease.id] = None

    def closed(self, lease_id: str) -> None:
        """Stop watching a pinhole that was closed."""
        self._once.pop(lease_id, None)
        self._flowing.discard(lease_id)
        self._silent.pop(lease_id, None)

    def look(self) -> None:
        """Find out which pinholes were used: their `once` element is gone before its time, or packets were counted."""
        begun = self._last = time.monotonic()
        self._next = begun + LOOK
        try:
            once = {(element.set, element.key) for element in self._netfilter.glance(ONCE)}
            for lease in self._leases.live():
                if is_single(lease) and self._once.setdefault(lease.id, once_of(lease)) not in once:
                    self._found_gone(lease)
            self._look_at_flows()
        except TableGoneError:
            self._gone()
            return
        except NetfilterError as error:
            log.warning("broker.reconcile_failed", error=str(error))
            return
        now = time.monotonic()
        self._took = now - begun
        # With thousands of pinholes the look takes long: never spend more than a tenth of the time on it.
        self._next = now + max(LOOK, 10 * (now - begun))

    def _look_at_flows(self) -> None:
        asked = [lease_id for lease_id, _ in zip(self._silent, range(_MOST_FLOWS), strict=False)]
        leases = [lease for lease_id in asked if (lease := self._leases.find(lease_id)) is not None]
        for lease_id in asked:
            del self._silent[lease_id]
        self._silent.update((lease.id, None) for lease in leases)  # the last ones now
        for lease, traffic in self._traffic(leases):
            self._seen(lease, traffic)

    def _traffic(self, leases: Sequence[Lease]) -> Iterator[tuple[Lease, Traffic]]:
        """Return the packets and bytes that have passed through conversations, which are read all together."""
        elements = [elements_of(lease, 0, 1.0) for lease in leases]
        counted = iter(self._netfilter.counted(element for group in elements for element in group))
        for lease, group in zip(leases, elements, strict=True):
            yield lease, traffic_of([next(counted) for _ in group])

    def _seen(self, lease: Lease, traffic: Traffic) -> None:
        if traffic.bytes and lease.id not in self._flowing:
            self._flowing.add(lease.id)
            self._silent.pop(lease.id, None)
            pinhole_log.info("pinhole.use", lease)

    def notice(self, client: str, rule: str) -> None:
        """Find out which pinholes of a client, or of all clients (`rule` is not "quota"), are used up. Asks a few
        questions at most, because any client can cause this."""
        leases = [lease for lease in self._leases.of_host(client) if is_single(lease)] if rule == "quota" else []
        if rule != "quota" or len(leases) > _MOST_FLOWS:
            if time.monotonic() >= self._last + max(_SOONEST, 10 * self._took):
                self.look()
            return
        try:
            for lease in leases:
                if not self._netfilter.has(*once_of(lease)):
                    self._found_gone(lease)
        except NetfilterError as error:
            log.warning("broker.reconcile_failed", error=str(error))

    def flowing(self) -> list[str]:
        """Return the ids of conversations of which packets were seen."""
        return list(self._flowing)

    def _found_gone(self, lease: Lease) -> None:
        """Note that the `once` element of a pinhole is gone from the kernel: it was used, or its time is as good as up,
        which `LeaseTable.expire` finds in a moment. The kernel's clock is not exactly ours, and it was asked before."""
        if self._leases.deadline_of(lease.id) - time.monotonic() > _NEAR_THE_END:
            self.found_used(lease)

    def found_used(self, lease: Lease) -> None:
        """Note that a pinhole is used up, as found by other means."""
        self._leases.use(lease.id)
        self.used += 1
        pinhole_log.info("pinhole.use", lease)

    def counts(self, leases: Sequence[Lease]) -> dict[str, tuple[int, int]]:
        """Return packets in and out of these conversations, by id; empty if the kernel does not answer."""
        try:
            return {lease.id: (found.packets_in, found.packets_out) for lease, found in self._traffic(leases)}
        except NetfilterError as error:
            log.warning("broker.count_failed", error=str(error))
            return {}

    def rows(self) -> Rows:
        """Return the open pinholes as of the last poll, with what has passed through conversations."""
        leases: Sequence[Lease] = self._leases.live()
        counted = {}
        if any(not lease.single for lease in leases):
            try:
                counted = {(element.set, element.key): element for element in self._netfilter.glance(COUNTED)}
            except NetfilterError as error:
                log.warning("broker.counters_failed", error=str(error))
        rows = []
        for lease in leases:
            traffic = NOTHING
            if not lease.single:
                keys = [(element.set, element.key) for element in elements_of(lease, 0, 1.0)]
                traffic = traffic_of(counted[key] for key in keys if key in counted)
                self._seen(lease, traffic)
            rows.append(lease_row(lease, traffic))
        return rows

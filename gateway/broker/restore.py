"""Restores the elements of open pinholes in a table that another program has emptied or removed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable

from gateway.broker.elements import Element, is_single, once_of
from gateway.broker.netfilter import Change, Netfilter
from gateway.broker.netlink import NetfilterError
from gateway.lease.table import LeaseTable
from gateway.model.requests import Lease
from gateway.observe.log import get_logger

STEP = 32
"""Leases restored in one turn of the broker's loop: that takes some milliseconds, then workers are served."""

_SHORTEST = 0.05  # seconds; what ends sooner is not put back

log = get_logger()


class Restoration:
    """The leases that are still to be restored, a few at a time.

    `admitted`: keys of the connections that pinholes have let in (`once_of`), as connection tracking remembers them;
    may raise NetfilterError. `elements`: those of a lease, by its slot and the seconds that it has left.
    """

    def __init__(
        self,
        netfilter: Netfilter,
        leases: LeaseTable,
        elements: Callable[[Lease, int, float], tuple[Element, ...]],
        admitted: Callable[[], set[bytes]],
    ) -> None:
        self._elements = elements
        self._netfilter = netfilter
        self._leases = leases
        self._admitted = admitted
        self._waiting: dict[str, int] = {}  # lease id to owner
        self._empty = True
        self._done = 0

    def __bool__(self) -> bool:
        """Whether anything is still to be restored."""
        return bool(self._waiting)

    def waits_for(self, lease_id: str) -> bool:
        """Whether this lease is still to be restored."""
        return lease_id in self._waiting

    def begin(self, *, empty: bool, without: Collection[str] = (), first: Iterable[str] = ()) -> list[Lease]:
        """Restore everything but the leases `without`, with `first` before the others. `empty`: the sets contain
        nothing. Returns the leases of one use that are used up, which only connection tracking knows at this point."""
        owned = {lease.id: (owner, lease) for owner, lease in self._leases.owned() if lease.id not in without}
        singles = [lease for _, lease in owned.values() if is_single(lease)]
        used = self._used(singles) if singles else []
        for lease in used:
            del owned[lease.id]
        order = [*(lease.id for lease in singles), *first, *owned]
        self._waiting = {lease_id: owned[lease_id][0] for lease_id in dict.fromkeys(order) if lease_id in owned}
        self._empty = empty
        self._done = 0
        return used

    def _used(self, singles: list[Lease]) -> list[Lease]:
        try:
            admitted = self._admitted()
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))
            return singles  # a second connection through a pinhole of one use is worse than none
        # The key of a pinhole for any host does not have the source.
        known = admitted | {key[: -(16 if len(key) > 24 else 4)] for key in admitted}
        return [lease for lease in singles if once_of(lease)[1] in known]

    def step(self) -> list[Lease]:
        """Restore some leases, and return them. Raises NetfilterError if it is not known what the kernel did; they wait
        for another call."""
        chosen = list(itertools.islice(self._waiting.items(), STEP))
        now = time.monotonic()
        leases: list[Lease] = []
        changes: list[Change] = []
        for lease_id, owner in chosen:
            del self._waiting[lease_id]
            lease = self._leases.find(lease_id)
            if lease is None:  # closed or used meanwhile
                continue
            left = self._leases.deadline_of(lease_id) - now
            if left < _SHORTEST:
                continue
            elements = self._elements(lease, owner, left)
            leases.append(lease)
            changes.append(Change(() if self._empty else elements, elements))
        try:
            refused = self._netfilter.apply(changes)
        except NetfilterError:
            self._waiting.update(chosen)
            raise
        self._done += len(leases)
        if not self._waiting:
            log.info("broker.table_restored", table=self._netfilter.name, pinholes=self._done)
        # What was opened or changed since then is there already, and so refused.
        return [lease for at, lease in enumerate(leases) if at not in refused]

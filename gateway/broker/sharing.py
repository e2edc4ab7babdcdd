"""Leases that share a public port, as elements of the kernel's table. One that is alone has its own elements
(`elements_of`), several have those of all of them together (`merged`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.broker.elements import Element, elements_of, merged
from gateway.broker.netfilter import Change
from gateway.lease.table import LeaseTable
from gateway.model.requests import Lease

Holding = tuple[Lease, int, float]
"""A lease, its slot, and the seconds that it lives."""

_AT_AN_END = 0.001  # seconds that a lease which ends still lives


class Sharing:
    """Finds the leases that share a public port, and makes the elements that the kernel's table has for them."""

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._merged: set[str] = set()  # leases that the kernel knows together with others

    def others(self, lease: Lease) -> list[Holding]:
        """Return the other leases that share a public port with this one."""
        found = self._leases.sharing(lease)
        if not found:
            return []
        now = time.monotonic()
        return [(other, owner, max(deadline - now, _AT_AN_END)) for owner, other, deadline in found]

    def opening(self, others: Sequence[Holding], new: Holding) -> Change:
        """Return what changes in the kernel when one more lease shares a port with others."""
        return self._change(others, [*others, new])

    def closing(self, others: Sequence[Holding], lease: Lease, slot: int) -> Change:
        """Return what changes in the kernel when a lease ends. `others` that share its port, if there are any, stay."""
        if not others and lease.id not in self._merged:  # nearly always
            return Change(elements_of(lease, slot, _AT_AN_END))
        return self._change([*others, (lease, slot, _AT_AN_END)], others)

    def updating(self, others: Sequence[Holding], old: Holding, new: Holding) -> Change:
        """Return what changes in the kernel when a lease that shares a port with others has changed."""
        return self._change([*others, old], [*others, new])

    def whole(self, lease: Lease, slot: int, left: float) -> tuple[Element, ...]:
        """Return all elements of a lease and of those that share its port, for a port that has no elements yet."""
        return self._together([(lease, slot, left), *self.others(lease)])

    def first_whole(self, lease: Lease, slot: int, left: float) -> tuple[Element, ...]:
        """As `whole`, but no elements where another of the leases has them for all."""
        others = self.others(lease)
        if any(other.id < lease.id for other, _, _ in others):
            return ()
        return self._together([(lease, slot, left), *others])

    def found_merged(self, lease: Lease) -> None:
        """Note that the kernel has elements of this lease and others together, or had them."""
        self._merged.add(lease.id)

    def _together(self, leases: Sequence[Holding]) -> tuple[Element, ...]:
        ids = {lease.id for lease, _, _ in leases}
        if len(ids) == 1:
            self._merged -= ids
            return elements_of(*leases[0])
        self._merged |= ids
        return merged(leases)

    def _change(self, before: Sequence[Holding], after: Sequence[Holding]) -> Change:
        """Return the change from the elements of some leases to those of others. What both have is left alone."""
        ids = {lease.id for lease, _, _ in before}
        old = elements_of(*before[0]) if len(before) == 1 and not ids & self._merged else merged(before)
        self._merged -= ids
        new = self._together(after) if after else ()
        was = {(element.set, element.key): element for element in old}
        wanted = {(element.set, element.key): element for element in new}
        return Change(
            tuple(element for name, element in was.items() if wanted.get(name) != element),
            tuple(element for name, element in wanted.items() if was.get(name) != element),
        )

"""What other programs do to the broker's table, and what is done about it: a table that was removed or emptied is
created again, and what is open is restored, unless that happens again and again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Sequence

from alg.bucket import Rate
from gateway.broker import marks
from gateway.broker.conntrack import Conntrack
from gateway.broker.element_messages import NFPROTO_INET
from gateway.broker.elements import Element
from gateway.broker.limits import BrokerLimits
from gateway.broker.netfilter import Netfilter, TableGoneError
from gateway.broker.netlink import NetfilterError
from gateway.broker.restore import Restoration
from gateway.broker.ruleset_watch import Changes
from gateway.broker.usage import Usage
from gateway.lease.table import LeaseTable
from gateway.model.requests import Lease
from gateway.observe.log import get_logger

SOON = 0.05
"""Seconds between a change of netfilter's rules by another program and the check of our own, because changes often
follow one another."""

AGAIN = 2.0
"""Seconds until something is tried again that the kernel or nft did not do."""

RESTORATIONS, PER_SECOND = 5, 1 / 60
"""How often the table is restored: this often at once, and once a minute in the long run. A program that removes it
more often means to."""

log = get_logger()


class TableGuard:
    """Keeps the nft table of `netfilter` as it must be.

    `elements`: those of a lease, by its slot and the seconds that it has left. `usage`: learns which pinholes were used
    meanwhile. `lose(without)` is called to count every lease as closed, except for these ids; `forgotten()` when what
    the table had noted by itself is lost. `limits`: whether the table is restored, and what is kept out of flowtables.
    """

    def __init__(
        self,
        netfilter: Netfilter,
        leases: LeaseTable,
        elements: Callable[[Lease, int, float], tuple[Element, ...]],
        usage: Usage,
        lose: Callable[[Collection[str]], None],
        forgotten: Callable[[], None],
        limits: BrokerLimits,
    ) -> None:
        self.restores = limits.restore
        self._netfilter = netfilter
        self._usage = usage
        self._lose = lose
        self._forgotten = forgotten
        self._signalling = limits.signalling
        self._restoration = Restoration(netfilter, leases, elements, lambda: Conntrack().begun_with(marks.ADMITTED))
        self._restorations = Rate(PER_SECOND, RESTORATIONS)
        self._suspicion = math.inf  # when to look whether the table is as it was
        self._elements_gone = False  # another program has deleted elements of ours
        self._filled_gone = False  # or perhaps of the sets of ports and networks, which nft fills for us
        self._disputed = -math.inf  # until when the table is not put back
        self._failing = False  # the last try to look at it, or to make it again, came to nothing
        self._pause = 0.0  # until when nothing is tried because of that

    @property
    def restoring(self) -> bool:
        """Whether something that is open is still to be restored. What is not there yet would count as used."""
        return bool(self._restoration)

    def is_to_restore(self, lease_id: str) -> bool:
        """Whether this lease is still to be restored."""
        return self._restoration.waits_for(lease_id)

    def deadline(self) -> float:
        """Return the time (monotonic) at which `look` has something to do; infinity: not before another program changes
        something."""
        return min(self._pause, self._suspicion) if self._restoration else self._suspicion

    def configure(self, limits: BrokerLimits) -> None:
        """Use other limits from now on."""
        self.restores = limits.restore
        if self._signalling != limits.signalling:
            self._signalling = limits.signalling
            self._keep_aside()

    def load(self) -> bool:
        """Create the table if it is missing or not as it must be. Returns whether it was made. Raises
        NetfilterError."""
        made = self._netfilter.load()
        self._keep_aside()
        return made

    def others_changed(self, changes: Changes) -> None:
        """Note that another program has changed netfilter's rules: after a moment it is checked whether ours are
        complete."""
        self._suspicion = min(self._suspicion, time.monotonic() + SOON)
        if changes.flowtables:
            self._keep_aside()
        ours = (NFPROTO_INET, self._netfilter.name)
        self._elements_gone = self._elements_gone or changes.lost or ours in changes.elements
        self._filled_gone = self._filled_gone or changes.lost or ours in changes.filled

    def look(self, now: float) -> list[Lease]:
        """Check the table if that is due, and restore some of what is open. Returns the leases that were restored.

        What the kernel or nft does not do now is tried again: only this process knows what was open."""
        try:
            if self._suspicion <= now:
                self._look_at_table()
            if self._restoration and self._pause <= now:
                return self._restoration.step()
        except TableGoneError:
            self.table_gone()
        except NetfilterError as error:
            self._failed(error, now)
        return []

    def table_gone(self) -> None:
        """Note that the table does not exist any more."""
        if not self.restores:  # it is made with the next opening
            self._lose(())
            return
        with contextlib.suppress(NetfilterError):  # it is tried again
            self.make_again()

    def _failed(self, error: NetfilterError, begun: float) -> None:
        """Note that the kernel or nft has not done what was asked at this moment."""
        log.error("broker.table_failed", table=self._netfilter.name, error=str(error))
        now = time.monotonic()
        self._failing = True
        self._suspicion = self._pause = now + max(AGAIN, now - begun)  # half of the time at most

    def make_again(self, opening: Sequence[Lease] = (), updated: Sequence[Lease] = ()) -> bool:
        """Create the table again after another program has removed it or a part of it, and restore what is open, except
        for the leases `opening` and `updated`, which are about to be changed. Returns False if that has been done too
        often, or has just failed; the table then stays as it is for a while. Raises NetfilterError if it fails."""
        now = time.monotonic()
        if self._failing:
            if now < self._pause:
                return False
        elif not self._restorations.take("", now):
            if self._disputed <= now:
                self._disputed = now + self._restorations.wait("", now)
                log.error("broker.table_disputed", table=self._netfilter.name, seconds=round(self._disputed - now))
            self._suspicion = self._disputed
            return False
        log.error("broker.table_gone", table=self._netfilter.name)
        if not self.restores:
            self._lose({lease.id for lease in opening})
        try:
            self.load()
        except NetfilterError as error:
            self._failed(error, now)
            raise
        self._failing = False
        self._forgotten()
        self._suspicion = now + SOON  # the program that flushes rules may not be done yet
        if self.restores:
            self.put_back(empty=True, without={lease.id for lease in (*opening, *updated)})
        return True

    def put_back(self, *, empty: bool, without: Collection[str] = ()) -> None:
        """Begin to restore what is open. `empty`: the sets contain nothing."""
        for lease in self._restoration.begin(empty=empty, without=without, first=self._usage.flowing()):
            self._usage.found_used(lease)

    def _look_at_table(self) -> None:
        self._suspicion = math.inf
        if time.monotonic() < self._disputed:
            self._suspicion = self._disputed
            return
        whole = self._netfilter.is_whole()
        elements_gone, self._elements_gone = self._elements_gone, False
        if not whole:
            self.table_gone()
            return
        self._failing = False
        if elements_gone:
            self._forgotten()
            if self.restores:
                log.error("broker.elements_gone", table=self._netfilter.name)
                self.put_back(empty=False)
        if self._filled_gone and self.restores:
            self._refill(time.monotonic())

    def _refill(self, now: float) -> None:
        """Fill the sets of ports and networks again if another program has emptied them. Nft does it, which takes long:
        so no more often than the table is made again."""
        wait = self._restorations.wait("sets", now)
        if wait > 0:
            self._suspicion = now + wait
            return
        if self._netfilter.refill():
            self._restorations.take("sets", now)
            log.error("broker.elements_gone", table=self._netfilter.name)
        self._filled_gone = False

    def _keep_aside(self) -> None:
        """If this host has flowtables, keep media and what modules read out of them. A failure is only logged."""
        try:
            if self._signalling and self._netfilter.has_flowtables():
                self._netfilter.keep_aside(self._signalling)
        except NetfilterError as error:
            log.warning("broker.offload", error=str(error), hint="algate doctor says what to add")

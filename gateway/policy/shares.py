"""Rates and quotas that flows share: those of a rule, of its clients and of its users. Pure: time is an argument.

A share exists as long as a flow has it, and then until it would be as new: its rate is saved up again, and the period
of its quota is over. So a client that connects again finds its share as it left it, and one that stays away leaves
nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.policy.pace import Bucket, Pace, burst_of
from gateway.policy.rules import ShareLimit
from gateway.policy.shared_counts import Cell, SharedCounts, key_of
from gateway.policy.shared_tokens import SharedTokens

MOST = 65_536  # shares that are remembered; beyond that those without a flow are forgotten, the oldest first
SWEEP = 10.0  # seconds between two looks for those that may be forgotten
UP, DOWN = 0, 1
_ASK_AGAIN = 1.0  # seconds; a flow whose quota is used up is ended before that


class Quota:
    """A quota: bytes of both directions together in each period. Periods are counted from the beginning of Unix time.

    A cell holds the period and what this worker has used of it; the cells of other workers hold what they have used.
    Each worker with flows may use its part of what is left before it looks again, so no two of them use the same bytes.
    """

    __slots__ = ("_cell", "_limit", "_offset", "_period", "_window")

    def __init__(self, cell: Cell, limit: int, period: float, offset: float) -> None:
        """`period` in seconds; `offset`: what has to be added to `now` to get Unix time."""
        self._cell = cell
        self._limit = limit
        self._period = period
        self._offset = offset
        self._window = 0

    def left(self, now: float) -> int:
        """Return how many bytes are left in this period."""
        window = self._window = int((now + self._offset) // self._period)
        cell = self._cell
        used = cell.spent if cell.mark == window else 0
        return self._limit - used - sum(spent for _, spent, mark, _ in cell.others() if mark == window)

    def mine(self, now: float) -> int:
        """Return how many of these bytes this worker may use before it asks again."""
        left = self.left(now)
        if left <= 0:
            return 0
        holders = 1 + sum(live > 0 for live, *_ in self._cell.others())
        if left >= holders:
            return left // holders
        return left if self._cell.first_of_live() else 0

    def spend(self, count: int) -> None:
        """Count `count` used bytes, in the period of the last call of `left`."""
        cell = self._cell
        if cell.mark != self._window:
            cell.spent = 0
            cell.mark = self._window
        cell.spent += count

    def rest(self, now: float) -> float:
        """Return the seconds until the period is over."""
        return self._period - (now + self._offset) % self._period

    def is_new(self, now: float) -> bool:
        """Whether this worker has used nothing of this period."""
        return not self._cell.spent or self._cell.mark != int((now + self._offset) // self._period)


class Share:
    """A rate for each direction, a quota, or both. `flows`: how many flows of this worker have it."""

    __slots__ = ("_cells", "_offset", "_rates", "flows", "limit", "paces", "quota")

    def __init__(self, cells: tuple[Cell, Cell, Cell], offset: float) -> None:
        """`cells`: those of the rates up and down, and of the quota. Before `use` is called the share limits
        nothing."""
        self._cells = cells
        self._offset = offset
        self.flows = 0
        self.limit: ShareLimit | None = None
        self._rates: tuple[SharedTokens, ...] = ()
        self.paces: tuple[Bucket, Bucket] | None = None
        self.quota: Quota | None = None

    def use(self, limit: ShareLimit) -> None:
        """Apply this limit from now on. What was used of a quota stays used, because the cells hold it."""
        up, down, used = self._cells
        self.limit = limit
        self._rates, self.paces = (), None
        if limit.rate:
            burst = burst_of(limit.rate)
            self._rates = ups, downs = SharedTokens(limit.rate, burst, up), SharedTokens(limit.rate, burst, down)
            self.paces = Bucket(ups), Bucket(downs)
        self.quota = Quota(used, limit.quota, limit.period, self._offset) if limit.quota else None

    def change(self, flows: int) -> None:
        """Add `flows` to the number of flows that have this share."""
        self.flows += flows
        self._cells[2].live = self.flows

    def is_new(self, now: float) -> bool:
        """Whether the share is as if no flow of this worker had used it."""
        full = all(rate.is_new(now) for rate in self._rates)
        return full and (self.quota is None or self.quota.is_new(now))

    def forget(self) -> None:
        """Free the cells. The share must not be used afterwards."""
        for cell in self._cells:
            cell.release()


class Shares:
    """The shares of this worker's flows. `shared`: the memory in which all workers count; `offset`: from `now` to Unix
    time."""

    def __init__(self, shared: SharedCounts, offset: float) -> None:
        self._shared = shared
        self._offset = offset
        self._table: dict[tuple[str, str, str], Share] = {}
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._table)

    def used_up(self, rule: str, limits: Sequence[ShareLimit], client: str, user: str | None, now: float) -> str | None:
        """Return why no new flow may begin (a quota is used up), or None."""
        for limit in limits:
            whose = _whose(limit, client, user)
            if not limit.quota or whose is None:
                continue
            quota = self._share((rule, limit.of, whose), limit).quota  # others may have used it up
            if quota is not None and quota.left(now) <= 0:
                return f"quota_per_{limit.of} of {limit.quota} bytes is used up for {quota.rest(now):.0f} s more"
        return None

    def join(
        self, rule: str, limits: Sequence[ShareLimit], client: str, user: str | None, now: float
    ) -> tuple[Share, ...]:
        """Return the shares of a new flow; call `leave` with them when it ends. Without a user it has no share of
        users."""
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP
            self._sweep(now)
        found = []
        for limit in limits:
            whose = _whose(limit, client, user)
            if whose is not None:
                share = self._share((rule, limit.of, whose), limit)
                share.change(1)
                found.append(share)
        return tuple(found)

    @staticmethod
    def leave(shares: Sequence[Share]) -> None:
        for share in shares:
            share.change(-1)

    def _share(self, key: tuple[str, str, str], limit: ShareLimit) -> Share:
        share = self._table.get(key)
        if share is None:
            if len(self._table) >= MOST:
                oldest = next((key for key, share in self._table.items() if not share.flows), None)
                if oldest is not None:
                    self._table.pop(oldest).forget()
            up, down, used = (self._shared.cell(key_of("share", *key, what)) for what in ("up", "down", "used"))
            share = self._table[key] = Share((up, down, used), self._offset)
        if share.limit != limit:
            share.use(limit)
        return share

    def _sweep(self, now: float) -> None:
        for key in [key for key, share in self._table.items() if not share.flows and share.is_new(now)]:
            self._table.pop(key).forget()


def _whose(limit: ShareLimit, client: str, user: str | None) -> str | None:
    """Return the key of the share: the client, the user, or "" for all together; None if there is none."""
    match limit.of:
        case "rule":
            return ""
        case "client":
            return client
        case "user":
            return user


class SharedPace(Pace):
    """One direction of a flow (UP, DOWN), under its own rate and the shares that it has.

    `used_up` is called with the limit whose quota does not let the flow go on, possibly several times.
    """

    __slots__ = ("_own", "_shares", "_used_up", "_way")

    def __init__(
        self, own: Pace | None, shares: Sequence[Share], way: int, used_up: Callable[[ShareLimit], None]
    ) -> None:
        self._own = own
        self._shares = shares
        self._way = way
        self._used_up = used_up

    def allowance(self, now: float) -> int:
        least = self._own.allowance(now) if self._own is not None else 1 << 30
        for share in self._shares:
            if share.paces is not None:
                least = min(least, share.paces[self._way].allowance(now))
            if share.quota is not None:
                mine = share.quota.mine(now)
                if mine <= 0:
                    if share.limit is not None:
                        self._used_up(share.limit)
                    return 0
                least = min(least, mine)
        return least

    def spend(self, count: int) -> None:
        if self._own is not None:
            self._own.spend(count)
        for share in self._shares:
            if share.paces is not None:
                share.paces[self._way].spend(count)
            if share.quota is not None:
                share.quota.spend(count)

    def due(self, now: float) -> float:
        times = [share.paces[self._way].due(now) for share in self._shares if share.paces is not None]
        if self._own is not None:
            times.append(self._own.due(now))
        return max(times, default=now + _ASK_AGAIN)

"""What flows share: the rates and quotas of a rule, of its clients and of its users. Pure: time is an argument.

A share is there as long as a flow has it, and after that until it would be as new: its rate is saved up again, and the
period of its quota is over. So who comes again finds what he left, and who is gone leaves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.policy.pace import Bucket, Pace
from gateway.policy.rules import ShareLimit

MOST = 65_536  # shares that are remembered; beyond that those without a flow are forgotten, the oldest first
SWEEP = 10.0  # seconds between two looks for those that may be forgotten
UP, DOWN = 0, 1
_ASK_AGAIN = 1.0  # seconds; a flow whose quota is used up is ended before that


class Quota:
    """Bytes, in both directions together, of each period. Periods are counted from the beginning of Unix time."""

    __slots__ = ("_limit", "_offset", "_period", "_used", "_window")

    def __init__(self, limit: int, period: float, now: float, offset: float) -> None:
        """`period` in seconds; `offset`: what has to be added to `now` to have Unix time."""
        self._limit = limit
        self._period = period
        self._offset = offset
        self._window = int((now + offset) // period)
        self._used = 0

    def left(self, now: float) -> int:
        """How many bytes may still be moved in this period."""
        window = int((now + self._offset) // self._period)
        if window != self._window:
            self._window = window
            self._used = 0
        return self._limit - self._used

    def spend(self, count: int) -> None:
        self._used += count

    def rest(self, now: float) -> float:
        """Seconds until the period is over."""
        return self._period - (now + self._offset) % self._period

    def is_new(self, now: float) -> bool:
        return self.left(now) == self._limit

    def change(self, other: Quota) -> None:
        """Be what `other` is, but for what is used; of another period nothing is."""
        self._limit, self._period = other._limit, other._period


class Share:
    """A rate for each direction, a quota, or both. `flows`: how many have it."""

    __slots__ = ("flows", "limit", "paces", "quota")

    def __init__(self, limit: ShareLimit, workers: int, now: float, offset: float) -> None:
        self.flows = 0
        self.limit = limit
        self.paces: tuple[Bucket, Bucket] | None = None
        self.quota: Quota | None = None
        if limit.rate:
            self.paces = Bucket(limit.rate / workers, now), Bucket(limit.rate / workers, now)
        if limit.quota:
            self.quota = Quota(-(-limit.quota // workers), limit.period, now, offset)

    def become(self, other: Share) -> None:
        """Have the limits of `other`: the rules have changed. What is used of a quota stays used."""
        self.limit, self.paces = other.limit, other.paces
        if self.quota is not None and other.quota is not None:
            self.quota.change(other.quota)
        else:
            self.quota = other.quota

    def is_new(self, now: float) -> bool:
        """Whether it is as if nobody had used it."""
        full = self.paces is None or all(pace.full(now) for pace in self.paces)
        return full and (self.quota is None or self.quota.is_new(now))


class Shares:
    """Those of one worker. `workers`: how many have a part of each limit; `offset`: from `now` to Unix time."""

    def __init__(self, workers: int, offset: float) -> None:
        self._workers = workers
        self._offset = offset
        self._table: dict[tuple[str, str, str], Share] = {}
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._table)

    def used_up(self, rule: str, limits: Sequence[ShareLimit], client: str, user: str | None, now: float) -> str | None:
        """Why nobody may begin a flow, or None."""
        for limit in limits:
            share = self._table.get((rule, limit.of, _whose(limit, client, user) or ""))
            if share is not None and share.limit == limit and share.quota and share.quota.left(now) <= 0:
                return f"quota_per_{limit.of} of {limit.quota} bytes is used up for {share.quota.rest(now):.0f} s more"
        return None

    def join(
        self, rule: str, limits: Sequence[ShareLimit], client: str, user: str | None, now: float
    ) -> tuple[Share, ...]:
        """The shares of a flow that begins; `leave` with them when it ends. One of users it has none without a user."""
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP
            self._sweep(now)
        found = []
        for limit in limits:
            whose = _whose(limit, client, user)
            if whose is not None:
                share = self._share((rule, limit.of, whose), limit, now)
                share.flows += 1
                found.append(share)
        return tuple(found)

    @staticmethod
    def leave(shares: Sequence[Share]) -> None:
        for share in shares:
            share.flows -= 1

    def _share(self, key: tuple[str, str, str], limit: ShareLimit, now: float) -> Share:
        share = self._table.get(key)
        if share is None:
            if len(self._table) >= MOST:
                oldest = next((key for key, share in self._table.items() if not share.flows), None)
                if oldest is not None:
                    del self._table[oldest]
            share = self._table[key] = Share(limit, self._workers, now, self._offset)
        elif share.limit != limit:
            share.become(Share(limit, self._workers, now, self._offset))
        return share

    def _sweep(self, now: float) -> None:
        for key in [key for key, share in self._table.items() if not share.flows and share.is_new(now)]:
            del self._table[key]


def _whose(limit: ShareLimit, client: str, user: str | None) -> str | None:
    """Who has the share: "" is everybody, None nobody."""
    match limit.of:
        case "rule":
            return ""
        case "client":
            return client
        case "user":
            return user


class SharedPace(Pace):
    """One direction of a flow (UP, DOWN) under its own rate and what it shares.

    `used_up` is called with the limit whose quota does not let the flow go on, perhaps again.
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
                left = share.quota.left(now)
                if left <= 0:
                    self._used_up(share.limit)
                    return 0
                least = min(least, left)
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

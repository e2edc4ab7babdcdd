"""How often somebody may do something: token buckets. Pure: the time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_MOST_KEYS = 4096


class Rate:
    """`per_second` on average and `burst` at once, for each key (a client, a worker).

    Keys that were long quiet are forgotten: their buckets are full.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Whether `key` may do it now; then it is counted. `now` is monotonic time in seconds."""
        tokens = self._tokens(key, now)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MOST_KEYS:
            self._buckets.popitem(last=False)
        return allowed

    def charge(self, key: Hashable, count: int, now: float) -> None:
        """`key` has done it `count` times more than it asked for: it has to wait that much longer."""
        self._buckets[key] = (self._tokens(key, now) - count, now)

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until `key` may do it."""
        return max(0.0, (1.0 - self._tokens(key, now)) / self._per_second)

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - then) * self._per_second)

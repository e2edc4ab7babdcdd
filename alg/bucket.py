"""How much may be done now: token buckets. Pure: the time is an argument, monotonic, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_MOST_KEYS = 4096


class TokenBucket:
    """`rate` tokens come in each second, above 0, and at most `burst` of them are saved up. It begins full.

    More may be spent than there are: the bucket is then below zero, and what is missing has to come in first.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def tokens(self, now: float) -> float:
        """How many there are; negative: more were spent than had come in."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return self._tokens

    def spend(self, count: float) -> None:
        """Take `count` tokens, whether or not there are as many."""
        self._tokens -= count

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        if self.tokens(now) < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Rate:
    """`per_second` on average and `burst` at once, for each key (a client, a worker), by a token bucket of its own.

    At most `most_keys` keys are remembered: those that asked latest. Of the others the buckets are taken for full.
    """

    def __init__(self, per_second: float, burst: float, most_keys: int = _MOST_KEYS) -> None:
        self._per_second = per_second
        self._burst = burst
        self._most_keys = most_keys
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Whether `key` may do it now; then it is counted."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._add(key, now)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now)

    def charge(self, key: Hashable, count: int, now: float) -> None:
        """`key` has done it `count` times more than it asked for: it has to wait that much longer."""
        bucket = self._buckets.get(key) or self._add(key, now)
        bucket.tokens(now)
        bucket.spend(count)

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until `key` may do it."""
        bucket = self._buckets.get(key)
        return max(0.0, (1.0 - (bucket.tokens(now) if bucket else self._burst)) / self._per_second)

    def _add(self, key: Hashable, now: float) -> TokenBucket:
        bucket = self._buckets[key] = TokenBucket(self._per_second, self._burst, now)
        if len(self._buckets) > self._most_keys:
            self._buckets.popitem(last=False)
        return bucket

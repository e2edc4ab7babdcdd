"""Token buckets, which limit how much may be done at a time. Pure: the time is an argument, monotonic, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_MOST_KEYS = 4096


class TokenBucket:
    """A bucket that gets `rate` tokens each second (above 0) and holds at most `burst` of them. It starts full.

    More tokens may be spent than there are: the bucket is then below zero, and what is missing has to come in first.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def tokens(self, now: float) -> float:
        """The number of tokens; negative if more were spent than had come in."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return self._tokens

    def spend(self, count: float) -> None:
        """Take `count` tokens, whether or not there are as many."""
        self._tokens -= count

    def take(self, now: float) -> bool:
        """Take one token if there is one. Returns whether there was."""
        if self.tokens(now) < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Rate:
    """A rate limit for each key (a client, a worker): `per_second` on average and `burst` at once, by one token bucket
    for each key.

    At most `most_keys` keys are remembered: those that asked most recently. For all others the bucket counts as full.
    """

    def __init__(self, per_second: float, burst: float, most_keys: int = _MOST_KEYS) -> None:
        self._per_second = per_second
        self._burst = burst
        self._most_keys = most_keys
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Whether `key` may act now. If so, the action is counted."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._add(key, now)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now)

    def charge(self, key: Hashable, count: int, now: float) -> None:
        """Count `count` actions of `key` that it had not asked for. It has to wait that much longer."""
        bucket = self._buckets.get(key) or self._add(key, now)
        bucket.tokens(now)
        bucket.spend(count)

    def wait(self, key: Hashable, now: float) -> float:
        """Return the seconds until `key` may act again."""
        bucket = self._buckets.get(key)
        return max(0.0, (1.0 - (bucket.tokens(now) if bucket else self._burst)) / self._per_second)

    def _add(self, key: Hashable, now: float) -> TokenBucket:
        bucket = self._buckets[key] = TokenBucket(self._per_second, self._burst, now)
        if len(self._buckets) > self._most_keys:
            self._buckets.popitem(last=False)
        return bucket

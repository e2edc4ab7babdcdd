"""Rate limits of bytes: how much may be read now, and when it is worth asking again.

Flows that share a `Bucket` (those of a rule, a user, a client) share its rate. A bucket has no timer: a flow that has
to wait is put into the relay's timer wheel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from alg.bucket import TokenBucket

BURST = 0.5  # seconds of the rate that can be saved up: two ticks of the wheel, so that waiting there costs no rate
SMALLEST = 1500  # bytes that can be saved up at the least
WORTHWHILE = 64 * 1024  # bytes that are always worth a read


class Pace(ABC):
    """The rate at which one direction of a flow may be read."""

    __slots__ = ()

    @abstractmethod
    def allowance(self, now: float) -> int:
        """Return how many bytes may be read now. It is 0 rather than a few bytes. `now` is of the monotonic clock."""

    @abstractmethod
    def spend(self, count: int) -> None:
        """Count `count` bytes that were read."""

    @abstractmethod
    def due(self, now: float) -> float:
        """Return when to call `allowance` again, if no other flow spends in the meantime."""


class Tokens(Protocol):
    """A token bucket, of one process (`alg.bucket.TokenBucket`) or of several (`shared_counts.SharedTokens`)."""

    rate: float
    burst: float

    def tokens(self, now: float) -> float:
        """Return the number of tokens."""

    def spend(self, count: float) -> None:
        """Take `count` tokens, as of the time of the last call of `tokens`."""


class Bucket(Pace):
    """A bucket whose tokens are bytes. None are given out before there are enough for a read that is worth a system
    call."""

    __slots__ = ("_tokens", "_worthwhile")

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._worthwhile = min(tokens.burst / 2, WORTHWHILE)

    @classmethod
    def of(cls, rate: float, now: float) -> Bucket:
        """Make a bucket of this process, for `rate` bytes a second (above 0) and a short burst."""
        return cls(TokenBucket(rate, burst_of(rate), now))

    def allowance(self, now: float) -> int:
        tokens = self._tokens.tokens(now)
        return int(tokens) if tokens >= self._worthwhile else 0

    def spend(self, count: int) -> None:
        self._tokens.spend(count)

    def due(self, now: float) -> float:
        return now + max(0.0, self._worthwhile - self._tokens.tokens(now)) / self._tokens.rate


def burst_of(rate: float) -> float:
    """Return how many bytes can be saved up at a rate in bytes a second."""
    return max(rate * BURST, SMALLEST)

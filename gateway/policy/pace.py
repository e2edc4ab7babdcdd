"""Rate limits of bytes: what says how much may be read now, and when it is worth asking again.

Flows that share a `Bucket` (those of a rule, a user, a client) share its rate. No timer belongs to it: a flow that has
to wait stands in the relay's wheel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from alg.bucket import TokenBucket

BURST = 0.5  # seconds of the rate that can be saved up: two ticks of the wheel, so that waiting there costs no rate
SMALLEST = 1500  # bytes that can be saved up at the least
WORTHWHILE = 64 * 1024  # bytes for which nobody need wait longer


class Pace(ABC):
    """At what pace one direction of a flow is read."""

    __slots__ = ()

    @abstractmethod
    def allowance(self, now: float) -> int:
        """How many bytes may be read now; 0 rather than a few. `now` is of the monotonic clock."""

    @abstractmethod
    def spend(self, count: int) -> None:
        """`count` bytes were read."""

    @abstractmethod
    def due(self, now: float) -> float:
        """When `allowance` is worth asking for again, if nobody else spends."""


class Tokens(Protocol):
    """A token bucket: of one process (`alg.bucket.TokenBucket`) or of several (`shared_counts.SharedTokens`)."""

    rate: float
    burst: float

    def tokens(self, now: float) -> float:
        """How many there are."""

    def spend(self, count: float) -> None:
        """Take so many, as of the time at which `tokens` was asked last."""


class Bucket(Pace):
    """Bytes as the tokens of a bucket. None are given out until a read is worthwhile."""

    __slots__ = ("_tokens", "_worthwhile")

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._worthwhile = min(tokens.burst / 2, WORTHWHILE)

    @classmethod
    def of(cls, rate: float, now: float) -> Bucket:
        """At most `rate` bytes a second, above 0, and a short burst, in this process."""
        return cls(TokenBucket(rate, burst_of(rate), now))

    def allowance(self, now: float) -> int:
        tokens = self._tokens.tokens(now)
        return int(tokens) if tokens >= self._worthwhile else 0

    def spend(self, count: int) -> None:
        self._tokens.spend(count)

    def due(self, now: float) -> float:
        return now + max(0.0, self._worthwhile - self._tokens.tokens(now)) / self._tokens.rate


def burst_of(rate: float) -> float:
    """How many bytes can be saved up at a rate in bytes a second."""
    return max(rate * BURST, SMALLEST)

"""Rate limits: what says how much may be read now, and when it is worth asking again; by a token bucket.

Whoever shares a `Bucket` (the flows of a rule, a user, a client) shares the rate. No timer belongs to it: a flow that
has to wait stands in the relay's wheel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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


class Bucket(Pace):
    """At most `rate` bytes a second, above 0, and a short burst."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens", "_worthwhile")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = max(rate * BURST, SMALLEST)
        self._worthwhile = min(self._burst / 2, WORTHWHILE)
        self._tokens = self._burst
        self._since = now

    def allowance(self, now: float) -> int:
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        return int(self._tokens) if self._tokens >= self._worthwhile else 0

    def spend(self, count: int) -> None:
        self._tokens -= count

    def full(self, now: float) -> bool:
        """Whether all that can be saved up is there."""
        self.allowance(now)
        return self._tokens >= self._burst

    def due(self, now: float) -> float:
        return now + max(0.0, self._worthwhile - self._tokens) / self._rate

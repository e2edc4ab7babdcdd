"""A token bucket that all workers of an instance have together. Pure: the memory and the time are arguments."""

from __future__ import annotations

from gateway.policy.shared_counts import Cell

_NANO = 1_000_000_000


class SharedTokens:
    """As `alg.bucket.TokenBucket`, but what it knows is one number in shared memory: when all that was spent will have
    come in again at this rate, in nanoseconds (GCRA, ITU-T I.371). Each worker writes its own cell, and the latest
    holds; what two workers spend in the same microseconds is counted once, which is far below a hundredth."""

    __slots__ = ("_now", "burst", "cell", "rate")

    def __init__(self, rate: float, burst: float, cell: Cell) -> None:
        self.rate = rate
        self.burst = burst
        self.cell = cell
        self._now = 0

    def tokens(self, now: float) -> float:
        """How many there are; negative: more were spent than had come in."""
        self._now = int(now * _NANO)
        return self.burst - max(0, self._latest() - self._now) * self.rate / _NANO

    def spend(self, count: float) -> None:
        """Take `count` tokens, as of the time at which `tokens` was asked last."""
        self.cell.mark = max(self._latest(), self._now) + int(count * _NANO / self.rate)

    def take(self, now: float) -> bool:
        """Take one token, if there is one. Where two workers may not both have the last one, the caller has a lock."""
        if self.tokens(now) < 1.0:
            return False
        self.spend(1.0)
        return True

    def is_new(self, now: float) -> bool:
        """Whether what this worker has spent has come in again."""
        return self.cell.mark <= now * _NANO

    def _latest(self) -> int:
        return max([self.cell.mark, *(mark for _, _, mark, _ in self.cell.others())])

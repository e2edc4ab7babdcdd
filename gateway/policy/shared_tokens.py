"""A token bucket that all workers of an instance share. Pure: the memory and the time are arguments."""

from __future__ import annotations

from gateway.policy.shared_counts import Cell

_NANO = 1_000_000_000


class SharedTokens:
    """Like `alg.bucket.TokenBucket`, but its state is one number in shared memory: the time at which all that was spent
    will have come in again at this rate, in nanoseconds (GCRA, ITU-T I.371). Each worker writes its own cell, and the
    latest time counts. What two workers spend within the same microseconds is counted once; that is far below one
    percent."""

    __slots__ = ("_now", "burst", "cell", "rate")

    def __init__(self, rate: float, burst: float, cell: Cell) -> None:
        self.rate = rate
        self.burst = burst
        self.cell = cell
        self._now = 0

    def tokens(self, now: float) -> float:
        """The number of tokens; negative if more were spent than had come in."""
        self._now = int(now * _NANO)
        return self.burst - max(0, self._latest() - self._now) * self.rate / _NANO

    def spend(self, count: float) -> None:
        """Take `count` tokens, as of the time of the last call of `tokens`."""
        self.cell.mark = max(self._latest(), self._now) + int(count * _NANO / self.rate)

    def take(self, now: float) -> bool:
        """Take one token if there is one. Where two workers must not both get the last one, the caller holds a lock."""
        if self.tokens(now) < 1.0:
            return False
        self.spend(1.0)
        return True

    def is_new(self, now: float) -> bool:
        """Whether all that this worker has spent has come in again."""
        return self.cell.mark <= now * _NANO

    def _latest(self) -> int:
        return max([self.cell.mark, *(mark for _, _, mark, _ in self.cell.others())])

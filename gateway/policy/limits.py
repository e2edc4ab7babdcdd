"""What rules allow at most: sessions at a time, of one client, new ones a second, and what they share (shares.py).

Pure: time is an argument.

A `Session` is counted from `enter` until its `release`, which may be called any number of times: so whoever might be
the last to hold it releases it, and no counter leaks. What is at zero is forgotten.
"""

from __future__ import annotations

from collections import Counter

from gateway.policy.rules import Decision, Limits
from gateway.policy.shares import Share, Shares


class LimitReached(Exception):
    """A rule allows no more now; the message says which limit."""


class Session:
    """One session that is counted for a rule. `shares`: the rates and quotas that its bytes are held to."""

    __slots__ = ("_client", "_owner", "_rule", "shares")

    def __init__(self, owner: RuleLimits, rule: str, client: str, shares: tuple[Share, ...] = ()) -> None:
        self._owner: RuleLimits | None = owner
        self._rule = rule
        self._client = client
        self.shares = shares

    def release(self) -> None:
        """It is over. Again: nothing happens."""
        if self._owner is not None:
            owner, self._owner = self._owner, None
            owner.leave(self._rule, self._client)
            Shares.leave(self.shares)

    def move(self, rule: str) -> None:
        """Count for another rule from now on, whatever that one's limits are; what it shares stays."""
        if self._owner is not None:
            self._owner.leave(self._rule, self._client)
            self._rule = rule
            self._owner.join(rule, self._client)


class _Bucket:
    """Tokens for new sessions: as many as come in a second, at least one, can be saved up."""

    __slots__ = ("rate", "since", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.since = now
        self.tokens = max(1.0, rate)

    def take(self, now: float) -> bool:
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.since) * self.rate)
        self.since = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class RuleLimits:
    """The sessions of one worker. `workers`: how many share the limits; each has its part, rounded up. `offset`: what
    has to be added to `now` to have Unix time, by which the periods of quotas are counted."""

    def __init__(self, workers: int = 1, offset: float = 0.0) -> None:
        self._workers = workers
        self._shares = Shares(workers, offset)
        self._sessions: Counter[str] = Counter()
        self._clients: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, _Bucket] = {}

    def enter(self, decision: Decision, client: str, now: float, user: str | None = None) -> Session:
        """Count a session of a client (an address), or of a user, for the rule that decided. `now` in seconds,
        monotonic. Raises LimitReached."""
        rule, limits = decision.rule, decision.limits or Limits()
        if limits.sessions and self._sessions[rule] >= self._part(limits.sessions):
            raise LimitReached(f"{limits.sessions} sessions are the limit")
        if limits.per_client and self._clients[rule, client] >= self._part(limits.per_client):
            raise LimitReached(f"{limits.per_client} sessions of a client are the limit")
        used_up = self._shares.used_up(rule, limits.shares, client, user, now)
        if used_up is not None:
            raise LimitReached(used_up)
        if limits.rate:
            bucket = self._buckets.get(rule)
            if bucket is None:
                bucket = self._buckets[rule] = _Bucket(limits.rate / self._workers, now)
            if not bucket.take(now):
                raise LimitReached(f"{limits.rate:g} new sessions a second are the limit")
        self.join(rule, client)
        return Session(self, rule, client, self._shares.join(rule, limits.shares, client, user, now))

    def join(self, rule: str, client: str) -> None:
        """For `Session.move`: one more."""
        self._sessions[rule] += 1
        self._clients[rule, client] += 1

    def leave(self, rule: str, client: str) -> None:
        """For `Session.release`."""
        self._sessions[rule] -= 1
        if not self._sessions[rule]:
            del self._sessions[rule]
        self._clients[rule, client] -= 1
        if not self._clients[rule, client]:
            del self._clients[rule, client]

    def counts(self) -> dict[str, int]:
        """Live sessions by rule."""
        return dict(self._sessions)

    def _part(self, limit: int) -> int:
        return -(-limit // self._workers)

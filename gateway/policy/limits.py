"""The limits of rules: sessions at a time, sessions of one client, new sessions a second, and shared rates and quotas
(shares.py).

The numbers hold for all workers together. Each worker counts in memory that all of them read (shared_counts.py);
checking and counting happens under a lock. Pure: time is an argument.

A `Session` is counted from `enter` until its `release`, which may be called any number of times, so that every possible
last holder can release it. Entries at zero are forgotten. The sessions of a worker that dies are released.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.policy.rules import Decision, Limits
from gateway.policy.shared_counts import Cell, SharedCounts, key_of
from gateway.policy.shared_tokens import SharedTokens
from gateway.policy.shares import Share, Shares

_NO_LIMITS = Limits()


class LimitReached(Exception):
    """The limit of a rule is reached. The message says which one."""


class Session:
    """One session that is counted for a rule. `shares`: the rates and quotas that apply to its bytes."""

    __slots__ = ("_client", "_owner", "_rule", "shares")

    def __init__(self, owner: RuleLimits, rule: str, client: str, shares: tuple[Share, ...] = ()) -> None:
        self._owner: RuleLimits | None = owner
        self._rule = rule
        self._client = client
        self.shares = shares

    def release(self) -> None:
        """Stop counting the session. Calling it again has no effect."""
        if self._owner is not None:
            owner, self._owner = self._owner, None
            owner.leave(self._rule, self._client)
            Shares.leave(self.shares)

    def move(self, rule: str) -> None:
        """Count for another rule from now on, whatever its limits are. The shares do not change."""
        if self._owner is not None:
            self._owner.leave(self._rule, self._client)
            self._rule = rule
            self._owner.join(rule, self._client)


class RuleLimits:
    """The sessions of all workers, as one of them sees them. `shared`: the memory in which they count; without it there
    is one worker. `offset`: what has to be added to `now` to get Unix time, by which the periods of quotas are counted.
    `identify`: which addresses are one client.
    """

    def __init__(
        self, shared: SharedCounts | None = None, offset: float = 0.0, identify: Callable[[str], str] = str
    ) -> None:
        self._identify = identify
        self._shared = shared or SharedCounts.alone()
        self._shares = Shares(self._shared, offset)
        self._sessions: dict[str, Cell] = {}
        self._clients: dict[tuple[str, str], Cell] = {}
        self._rates: dict[str, SharedTokens] = {}

    def enter(self, decision: Decision, client: str, now: float, user: str | None = None) -> Session:
        """Count a session of a client (an address) and a user for the rule that decided. `now` in seconds, monotonic.
        Raises LimitReached."""
        rule, limits, client = decision.rule, decision.limits or _NO_LIMITS, self._identify(client)
        if limits is _NO_LIMITS:
            self.join(rule, client)
            return Session(self, rule, client)
        with self._shared.lock(_rule_key(rule)):
            # Counted first: where the lock was not to be had in time, two workers may both refuse, but not both admit.
            self.join(rule, client)
            try:
                self._check(rule, limits, client, user, now)
            except LimitReached:
                self.leave(rule, client)
                raise
        return Session(self, rule, client, self._shares.join(rule, limits.shares, client, user, now))

    def _check(self, rule: str, limits: Limits, client: str, user: str | None, now: float) -> None:
        """Raise LimitReached if a session that is counted already is one too many."""
        if limits.sessions and self._live(self._sessions[rule], _rule_key(rule)) > limits.sessions:
            raise LimitReached(f"{limits.sessions} sessions are the limit")
        of_client = self._live(self._clients[rule, client], _client_key(rule, client))
        if limits.per_client and of_client > limits.per_client:
            raise LimitReached(f"{limits.per_client} sessions of a client are the limit")
        used_up = self._shares.used_up(rule, limits.shares, client, user, now)
        if used_up is not None:
            raise LimitReached(used_up)
        if limits.rate and not self._take(rule, limits.rate, now):
            raise LimitReached(f"{limits.rate:g} new sessions a second are the limit")

    def join(self, rule: str, client: str) -> None:
        """Count one more session of a client; used by `Session.move`."""
        self._of_rule(rule).live += 1
        self._of_client(rule, client).live += 1

    def leave(self, rule: str, client: str) -> None:
        """Count one session less of a client; used by `Session.release`."""
        cell = self._of_rule(rule)
        cell.live -= 1
        if not cell.live:
            self._sessions.pop(rule).release()
        cell = self._of_client(rule, client)
        cell.live -= 1
        if not cell.live:
            self._clients.pop((rule, client)).release()

    def counts(self) -> dict[str, int]:
        """Return the live sessions of this worker, by rule."""
        return {rule: cell.live for rule, cell in self._sessions.items() if cell.live}

    def _live(self, cell: Cell, key: int) -> int:
        """Return the number of sessions in all workers. `cell`: that of this worker."""
        return cell.live + sum(live for live, *_ in self._shared.others(key))

    def _of_rule(self, rule: str) -> Cell:
        cell = self._sessions.get(rule)
        if cell is None:
            cell = self._sessions[rule] = self._shared.cell(_rule_key(rule))
        return cell

    def _of_client(self, rule: str, client: str) -> Cell:
        cell = self._clients.get((rule, client))
        if cell is None:
            cell = self._clients[rule, client] = self._shared.cell(_client_key(rule, client))
        return cell

    def _take(self, rule: str, rate: float, now: float) -> bool:
        """Take one token for a new session, if the rate allows it. As many tokens as come in a second, and at least
        one, can be saved up."""
        bucket = self._rates.get(rule)
        if bucket is None or bucket.rate != rate:
            cell = bucket.cell if bucket is not None else self._shared.cell(key_of("rate of rule", rule))
            bucket = self._rates[rule] = SharedTokens(rate, max(1.0, rate), cell)
        return bucket.take(now)


def _rule_key(rule: str) -> int:
    return key_of("rule", rule)


def _client_key(rule: str, client: str) -> int:
    return key_of("client of rule", rule, client)

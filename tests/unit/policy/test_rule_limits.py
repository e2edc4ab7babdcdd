"""The counters of rules: what they allow, and that they come back to nothing."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.limits import LimitReached, RuleLimits, Session
from gateway.policy.rules import Decision, Limits
from gateway.policy.shared_counts import SharedCounts, clear
from tests.unit.policy.test_clients import memory


def decision(rule: str = "r", **limits: float) -> Decision:
    return Decision(True, rule, limits=Limits(**limits))  # type: ignore[arg-type]


def test_sessions_in_all_and_of_one_client() -> None:
    counters = RuleLimits()
    rule = decision(sessions=3, per_client=2)
    first = [counters.enter(rule, "a", 0), counters.enter(rule, "a", 0)]
    with pytest.raises(LimitReached, match="2 sessions of a client"):
        counters.enter(rule, "a", 0)
    second = counters.enter(rule, "b", 0)
    with pytest.raises(LimitReached, match="3 sessions are"):
        counters.enter(rule, "c", 0)
    counters.enter(decision("another", sessions=1), "a", 0).release()
    first[0].release()
    first[0].release()  # counts once
    counters.enter(rule, "a", 0).release()
    first[1].release()
    second.release()
    assert counters.counts() == {}


def test_new_sessions_a_second() -> None:
    counters = RuleLimits()
    rule = decision(rate=2.0)
    counters.enter(rule, "a", 0)
    counters.enter(rule, "a", 0)
    with pytest.raises(LimitReached, match="2 new sessions a second"):
        counters.enter(rule, "a", 0.4)
    counters.enter(rule, "a", 0.6)


def test_less_than_one_a_second() -> None:
    counters = RuleLimits()
    rule = decision(rate=0.1)
    counters.enter(rule, "a", 0)
    with pytest.raises(LimitReached):
        counters.enter(rule, "a", 9)
    counters.enter(rule, "a", 10.1)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 3)), max_size=150))
@settings(deadline=None)
def test_workers_share_a_limit(steps: list[tuple[int, str, int]]) -> None:
    """Exactly: what is refused is refused because there are as many, in whichever worker they are."""
    words = memory(3)
    counters = [RuleLimits(SharedCounts(words, slot)) for slot in range(3)]
    rule = decision(sessions=5, per_client=3)
    live: list[tuple[int, str, Session]] = []
    for worker, client, action in steps:
        if action == 0 and live:
            live.pop(0)[2].release()
        elif action == 1:
            clear(words, worker)  # it has died, and another one comes in its place
            live = [session for session in live if session[0] != worker]
            counters[worker] = RuleLimits(SharedCounts(words, worker))
        else:
            full = len(live) >= 5 or sum(1 for _, whose, _ in live if whose == client) >= 3
            try:
                live.append((worker, client, counters[worker].enter(rule, client, 0)))
            except LimitReached:
                assert full
            else:
                assert not full


@pytest.mark.parametrize("limit", ["sessions", "per_client"])
def test_not_one_more_where_the_lock_was_not_to_be_had(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stopped with the lock keeps the others for two milliseconds. Then one may read what there is,
    and another one be admitted before the first one counts its own."""
    words = memory(2)
    first, second = (RuleLimits(SharedCounts(words, slot)) for slot in range(2))
    rule = decision("r", **{limit: 1.0})
    admitted: list[Session] = []
    shared = first._shared

    class Meanwhile:
        """The counts that are shared, where the other worker comes in between: compiled, they cannot be changed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(shared, name)

        def others(self, key: int) -> list[tuple[int, int, int, int]]:
            found = shared.others(key)
            monkeypatch.setattr(first, "_shared", shared)
            with contextlib.suppress(LimitReached):
                admitted.append(second.enter(rule, "a", 0))
            return found

    monkeypatch.setattr(first, "_shared", Meanwhile())
    with contextlib.suppress(LimitReached):
        admitted.append(first.enter(rule, "a", 0))
    assert len(admitted) == 1
    admitted[0].release()
    assert first.counts() == second.counts() == {}
    second.enter(rule, "a", 0).release()


def test_workers_share_the_rate_of_new_sessions() -> None:
    words = memory(2)
    first, second = (RuleLimits(SharedCounts(words, slot)) for slot in range(2))
    rule = decision(rate=4.0)
    for counters in (first, second, first, second):
        counters.enter(rule, "a", 10)
    for counters in (first, second):
        with pytest.raises(LimitReached):
            counters.enter(rule, "a", 10.2)
    second.enter(rule, "a", 10.3)
    with pytest.raises(LimitReached):
        first.enter(rule, "a", 10.3)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_counters_are_the_live_sessions(seed: int) -> None:
    chance = random.Random(seed)
    counters = RuleLimits()
    live: list[tuple[str, Session]] = []
    for _ in range(200):
        if live and chance.random() < 0.5:
            live.pop(chance.randrange(len(live)))[1].release()
            continue
        rule = chance.choice("xyz")
        try:
            session = counters.enter(decision(rule, sessions=5, per_client=3), chance.choice("abc"), 0)
        except LimitReached:
            continue
        live.append((rule, session))
        names = [name for name, _ in live]
        assert counters.counts() == {name: names.count(name) for name in names}
        assert max(counters.counts().values()) <= 5
    for _, session in live:
        session.release()
    assert counters.counts() == {}
    assert not counters._clients

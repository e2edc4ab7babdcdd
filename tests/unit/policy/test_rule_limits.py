"""The counters of rules: what they allow, and that they come back to nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.limits import LimitReached, RuleLimits, Session
from gateway.policy.rules import Decision, Limits


def decision(rule: str = "r", **limits: float) -> Decision:
    return Decision(True, rule, limits=Limits(**limits))  # type: ignore[arg-type]


def test_sessions_in_all_and_of_one_client() -> None:
    counters = RuleLimits()
    rule = decision(sessions=3, per_client=2)
    first = [counters.enter(rule, "a", 0), counters.enter(rule, "a", 0)]
    with pytest.raises(LimitReached, match="2 sessions of a client"):
        counters.enter(rule, "a", 0)
    other = counters.enter(rule, "b", 0)
    with pytest.raises(LimitReached, match="3 sessions are"):
        counters.enter(rule, "c", 0)
    counters.enter(decision("another", sessions=1), "a", 0).release()
    first[0].release()
    first[0].release()  # counts once
    counters.enter(rule, "a", 0).release()
    first[1].release()
    other.release()
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


def test_workers_share_a_limit() -> None:
    counters = RuleLimits(workers=2)
    rule = decision(sessions=3)
    counters.enter(rule, "a", 0)
    counters.enter(rule, "a", 0)
    with pytest.raises(LimitReached):
        counters.enter(rule, "a", 0)


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

"""What flows share: never more than the rate and the quota say, whoever comes and goes, and nothing is left of him."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.rules import RuleError, compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.policy import shares as module
from gateway.policy.limits import LimitReached, RuleLimits, Session
from gateway.policy.pace import BURST, Bucket
from gateway.policy.rules import Decision, Limits, ShareLimit
from gateway.policy.shared_counts import SharedCounts, clear
from gateway.policy.shares import DOWN, UP, SharedPace, Shares
from tests.unit.policy.test_clients import memory

QUOTA = ShareLimit("client", 0.0, 1000, 100.0)


def decision(*limits: ShareLimit, rule: str = "r") -> Decision:
    return Decision(True, rule, limits=Limits(shares=limits))


def pace_of(limits: RuleLimits, rule: Decision, client: str, now: float, user: str | None = None) -> SharedPace:
    return SharedPace(None, limits.enter(rule, client, now, user).shares, UP, lambda _limit: None)


def test_a_quota_is_used_up_and_new_flows_wait_for_the_next_period() -> None:
    limits = RuleLimits(offset=50.0)  # at 0 there are 50 seconds left of a period
    rule = decision(QUOTA)
    first = limits.enter(rule, "a", 0)
    ended: list[ShareLimit] = []
    up, down = (SharedPace(None, first.shares, way, ended.append) for way in (UP, DOWN))
    assert up.allowance(0) == 1000
    up.spend(700)
    assert down.allowance(1) == 300  # both directions together
    down.spend(300)
    assert ended == []
    assert up.allowance(2) == 0
    assert ended == [QUOTA]
    with pytest.raises(LimitReached, match="quota_per_client of 1000 bytes is used up for 20 s more"):
        limits.enter(rule, "a", 30)
    limits.enter(rule, "b", 30)
    first.release()
    with pytest.raises(LimitReached):
        limits.enter(rule, "a", 49.9)  # he has gone, and comes again
    assert pace_of(limits, rule, "a", 50.1).allowance(50.1) == 1000


def test_users_and_rules_have_shares_of_their_own() -> None:
    limits = RuleLimits()
    rule = decision(ShareLimit("user", 0.0, 100, 60.0), ShareLimit("rule", 0.0, 250, 60.0))
    for user, client in (("ann", "a"), ("bob", "a")):
        pace = pace_of(limits, rule, client, 0, user)
        pace.spend(pace.allowance(0))
    with pytest.raises(LimitReached, match="quota_per_user"):
        limits.enter(rule, "elsewhere", 1, "ann")
    nobody = pace_of(limits, rule, "c", 1)  # has no share of a user, but of the rule
    assert nobody.allowance(1) == 50
    nobody.spend(50)
    with pytest.raises(LimitReached, match="quota_per_rule"):
        limits.enter(rule, "d", 1, "eve")
    limits.enter(decision(QUOTA, rule="another"), "d", 1)


def test_a_rate_is_shared_in_each_direction_and_the_least_counts() -> None:
    limits = RuleLimits()
    rule = decision(ShareLimit("client", 10_000.0, 0, 1.0))
    near, beside = (limits.enter(rule, "a", 0).shares for _ in range(2))
    first, second = SharedPace(None, near, UP, print), SharedPace(Bucket.of(1e6, 0), beside, UP, print)
    assert first.allowance(0) == second.allowance(0) == 5000
    first.spend(5000)
    assert second.allowance(0) == 0
    assert SharedPace(None, beside, DOWN, print).allowance(0) == 5000
    assert second.allowance(second.due(0) + 0.001) > 0
    assert pace_of(limits, rule, "b", 0).allowance(0) == 5000


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.3), st.floats(0, 1)), max_size=200))
@settings(deadline=None, max_examples=50)
def test_workers_share_a_rate(steps: list[tuple[int, float, float]]) -> None:
    """Whoever moves how much when: together they have the rate, the burst, and what each reads in the same moment."""
    rate = 100_000.0
    words = memory(3)
    rule = decision(ShareLimit("client", rate, 0, 1.0))
    paces = [pace_of(RuleLimits(SharedCounts(words, slot)), rule, "a", 0) for slot in range(3)]
    now, moved = 0.0, 0
    for worker, later, share in steps:
        now += later
        count = int(paces[worker].allowance(now) * share)
        if count:
            paces[worker].spend(count)
        moved += count
        assert moved <= rate * (now + BURST) + 1
    took = 0
    began = now = now + 1.0
    while now < began + 20:  # and as much as they want they get
        now += 0.01
        for pace in paces:
            count = pace.allowance(now)
            if count:
                pace.spend(count)
            took += count
    assert took == pytest.approx(rate * (20 + BURST), rel=0.02)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.booleans()), max_size=200))
@settings(deadline=None)
def test_workers_share_a_quota(steps: list[tuple[int, float, bool]]) -> None:
    """Never more, however they interleave: also where all look before any of them has used what it may."""
    words = memory(3)
    rule = decision(ShareLimit("client", 0.0, 10_000, 100.0))
    paces = [pace_of(RuleLimits(SharedCounts(words, slot)), rule, "a", 0) for slot in range(3)]
    moved = 0
    for worker, share, together in steps:
        movers = paces if together else [paces[worker]]
        counts = [int(pace.allowance(1.0) * share) for pace in movers]
        for pace, count in zip(movers, counts, strict=True):
            if count:
                pace.spend(count)
        moved += sum(counts)
        assert moved <= 10_000
    for _ in range(100):
        for pace in paces:
            count = pace.allowance(1.0)
            if count:
                pace.spend(count)
            moved += count
    assert moved == 10_000
    with pytest.raises(LimitReached, match="used up"):
        RuleLimits(SharedCounts(words, 1)).enter(rule, "a", 1.0)


def test_a_worker_that_died_has_used_what_it_has_used() -> None:
    words = memory(2)
    rule = decision(QUOTA)
    first = pace_of(RuleLimits(SharedCounts(words, 0)), rule, "a", 1)
    first.spend(first.allowance(1) - 100)
    clear(words, 0)
    assert pace_of(RuleLimits(SharedCounts(words, 1)), rule, "a", 2).allowance(2) == 100
    assert pace_of(RuleLimits(SharedCounts(words, 0)), rule, "a", 2).allowance(2) == 50  # half, as there are two


def test_other_limits_hold_for_the_flows_that_are_there() -> None:
    """The rules have been changed: what was used stays used."""
    limits = RuleLimits()
    pace = pace_of(limits, decision(QUOTA), "a", 0)
    pace.spend(600)
    limits.enter(decision(ShareLimit("client", 0.0, 700, 100.0)), "a", 1)
    assert pace.allowance(1) == 100
    limits.enter(decision(ShareLimit("client", 1e4, 0, 100.0)), "a", 2)
    assert pace.allowance(2) == 5000


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 60), st.floats(0, 1), st.booleans()), max_size=120))
@settings(deadline=None)
def test_never_more_and_nothing_left(steps: list[tuple[int, float, float, bool]]) -> None:
    """Clients come, move bytes as far as they may, and go: of no period anybody has more than the quota."""
    limits = RuleLimits(offset=1e9)
    rule = decision(ShareLimit("client", 5e4, 20_000, 50.0), ShareLimit("rule", 0.0, 60_000, 50.0))
    moved: dict[tuple[object, int], int] = {}
    staying: list[Session] = []
    now = 0.0
    for which, later, share, stay in steps:
        now += later
        client = f"client{which}"
        try:
            session = limits.enter(rule, client, now)
        except LimitReached:
            continue
        pace = SharedPace(None, session.shares, which % 2, lambda _limit: None)
        count = int(pace.allowance(now) * share)
        pace.spend(count)
        window = int((now + 1e9) // 50.0)
        for key, most in (((client, window), 20_000), ((None, window), 60_000)):
            moved[key] = moved.get(key, 0) + count
            assert moved[key] <= most
        if stay:
            staying.append(session)
        else:
            session.release()
            session.release()
    for session in staying:
        session.release()
    limits.enter(decision(rule="another"), "z", now + 100).release()  # whoever comes next
    assert len(limits._shares) == 0


def test_a_crowd_is_forgotten_before_those_who_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    table = Shares(SharedCounts.alone(), 0.0)
    stays = table.join("r", [QUOTA], "stays", None, 0)
    for number in range(100):
        gone = table.join("r", [QUOTA], f"client{number}", None, 0)
        assert gone[0].quota is not None
        gone[0].quota.left(0)
        gone[0].quota.spend(1)
        table.leave(gone)
        assert len(table) <= 10
    assert table.join("r", [QUOTA], "stays", None, 0) == stays


@pytest.mark.parametrize(
    ("key", "value", "more", "said"),
    [
        ("quota_per_client", -1, {}, "quota_per_client: -1 is negative"),
        ("bandwidth_per_user", 5, {"action": "deny"}, "bandwidth_per_user: has no meaning for a rule that denies"),
        ("quota_per_rule", 5, {"command": ("udp",)}, "quota_per_rule: is for TCP, and the rule for udp"),
        ("quota_period", 0.0, {}, "quota_period: 0 is not between 1 second and a year"),
    ],
)
def test_what_makes_no_sense(key: str, value: float, more: dict[str, object], said: str) -> None:
    with pytest.raises(RuleError) as caught:
        compile_rule(RuleSection(**{"action": "permit", key: value, **more}), "r", "")  # type: ignore[arg-type]
    assert f"{caught.value.key}: {caught.value}" == said


def test_the_keys_of_a_rule() -> None:
    section = RuleSection(
        action="permit", bandwidth_per_client=7, quota_per_client=9, quota_per_rule=5, quota_period=60
    )
    limits = compile_rule(section, "r", "").decision.limits
    assert limits is not None
    assert limits.shares == (ShareLimit("rule", 0.0, 5, 60), ShareLimit("client", 7.0, 9, 60))

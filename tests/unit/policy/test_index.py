"""The index finds what looking at each rule finds."""

from __future__ import annotations

import ipaddress
import random
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Address, canonical
from gateway.model.hosts import canonical_name, seen_through
from gateway.policy.decide import Policy
from gateway.policy.index import RuleIndex
from gateway.policy.rules import Query, minute_of_week
from tests.unit.policy import rulesets

INSIDE = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("2001:db8:1::/48")]
MONDAY = datetime(2024, 1, 1)


def name_of(host: str) -> str | None:
    try:
        return canonical_name(host)
    except ValueError:
        return None


@given(seed=st.integers(0, 2**32), count=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_the_index_is_the_first_match(seed: int, count: int) -> None:
    chance = random.Random(seed)
    candidates = rulesets.rules(chance, count)
    index = RuleIndex(candidates)
    now = MONDAY + timedelta(minutes=chance.randrange(7 * 24 * 60))
    own: frozenset[Address] = frozenset()
    policy = Policy(INSIDE, candidates, now=lambda: now, is_own=lambda address: address in own)
    for _ in range(20):
        request = rulesets.request(chance)
        address = rulesets.target(chance)
        own = frozenset(view for view in seen_through(address) if chance.random() < 0.2)
        query = Query(
            request.command, canonical(request.client.host), name_of(request.host), request.port, request.user,
            request.groups, minute_of_week(now),
        )  # fmt: skip
        for protected in (None, *(policy._protection(view)[1] for view in seen_through(address))):
            plain = canonical(address)
            expected = rulesets.first_match(candidates, query, plain, protected)
            static, named = index.apart_from_target(query), index.named(query.name)
            assert index.first_match(query.name, static, named, plain, protected) is expected
        if not candidates:
            continue
        decision = policy.judge(request).at(address)
        verdicts = [
            rulesets.first_match(candidates, query, view, policy._protection(view)[1]) for view in seen_through(address)
        ]
        assert decision.permit == all(rule is not None and rule.permit for rule in verdicts)
        explanation = policy.explain(request, address)
        assert explanation.decision == decision
        assert all(why for _, _, why in explanation.passed) or len(verdicts) > 1
        if decision.permit:  # what may not even ask is permitted nowhere
            assert policy.judge(request).client.permit


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_who_is_denied_before_a_name_is_resolved_is_denied_everywhere(seed: int) -> None:
    chance = random.Random(seed)
    policy = Policy(INSIDE, rulesets.rules(chance, 10), now=lambda: MONDAY)
    for _ in range(20):
        request = rulesets.request(chance)
        if not policy.judge(request).client.permit:
            for text in rulesets.ADDRESSES:
                assert not policy.judge(request).at(ipaddress.ip_address(text)).permit

"""Which chains of other firewalls drop what the gateway admits, told from the form of their rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker.marks import ADMITTED
from gateway.host.foreign_chains import dropping
from gateway.host.openings import findings
from gateway.host.plan import Tried

WHAT_IS_NEW = "a rule that drops what is new in inet filter forward"
DROP: dict[str, Any] = {"drop": None}
REJECT: dict[str, Any] = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNT: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}
INVALID: dict[str, Any] = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}
NEW: dict[str, Any] = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}
FROM: dict[str, Any] = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}
ADDRESS: dict[str, Any] = {
    "match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "192.0.2.1"}
}


def chain(name: str = "forward", policy: str | None = "accept", hook: str | None = "forward", **more: Any) -> Any:
    based = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": "inet", "table": "filter", "name": name, **based, **more}}


def rule(*expressions: dict[str, Any], of: str = "forward", **more: Any) -> Any:
    return {"rule": {"family": "inet", "table": "filter", "chain": of, "expr": list(expressions), "handle": 1, **more}}


def protocol(which: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": "l4proto"}}, "right": which}}


def jump(to: str) -> dict[str, Any]:
    return {"jump": {"target": to}}


def admits(mark: int = ADMITTED) -> Any:
    left = {"&": [{"ct": {"key": "mark"}}, mark]}
    return rule({"match": {"op": "==", "left": left, "right": mark}}, {"accept": None})


@pytest.mark.parametrize(
    ("ruleset", "why"),
    [
        ([chain(policy="drop")], "policy drop"),
        ([chain(), rule(COUNT, DROP)], "a rule that drops all in inet filter forward"),
        ([chain(), rule(jump("rest")), chain("rest", hook=None), rule(REJECT, of="rest")],
         "a rule that rejects all in inet filter rest"),
        ([chain(), rule({"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["eth0", jump("rest")]]}}}),
          chain("rest", hook=None), rule(DROP, of="rest")], "a rule that drops all in inet filter rest"),
        ([chain(), rule(jump("a")), chain("a", hook=None), rule(jump("b"), of="a"), chain("b", hook=None),
          rule(jump("a"), of="b")], None),
        ([chain(), rule(INVALID, DROP)], None),
        ([chain(), rule({"limit": {"rate": 1, "per": "second"}}, DROP)], None),
        ([chain(policy="drop", hook="output")], "policy drop"),
        ([chain(), rule(FROM, NEW, DROP)], WHAT_IS_NEW),
        ([chain(), rule(FROM, ADDRESS, DROP)], None),
        ([chain(), rule(protocol("icmp"), DROP)], None),
        ([chain(), rule(protocol({"set": ["icmp", "ipv6-icmp"]}), NEW, DROP)], None),
        ([chain(), rule(protocol({"set": ["tcp", "udp"]}), NEW, DROP)], WHAT_IS_NEW),
        ([chain(), rule(protocol(17), DROP)], WHAT_IS_NEW),
        ([chain(), rule(protocol("icmp", "!="), DROP)], WHAT_IS_NEW),
        ([chain(policy="drop", family="netdev")], None),
        ([chain("FORWARD", policy="drop", family="ip")], None),  # iptables-nft's own: there our jumps come first
        ([chain("forward", policy="drop", family="ip")], "policy drop"),
        ([chain(policy="drop", table="algate")], None),
    ],
)  # fmt: skip
def test_what_drops(ruleset: list[Any], why: str | None) -> None:
    assert [found.why for found in dropping(ruleset, "algate")] == ([why] if why else [])


def test_a_chain_says_what_it_has_already() -> None:
    ruleset = [chain(policy="drop"), rule(COUNT, {"accept": None}, comment="algate")]
    (found,) = dropping(ruleset, "algate")
    assert found.comments == ("algate",)
    assert not found.admits
    (found,) = dropping([chain(policy="drop"), admits()], "algate")
    assert found.admits
    (found,) = dropping([chain(policy="drop"), admits(1)], "algate")
    assert not found.admits


_expressions = st.recursive(
    st.sampled_from([DROP, REJECT, COUNT, INVALID, {"accept": None}, {"return": None}, {"xt": None}, {"unknown": 1}]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(jump, st.sampled_from(["forward", "rest", "nowhere"])),
        st.dictionaries(st.sampled_from(["vmap", "goto", "set", "match"]), inner, max_size=2),
    ),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(["forward", "rest"]), st.lists(_expressions, max_size=3)), max_size=5))
def test_no_ruleset_is_too_odd(rules: list[tuple[str, list[Any]]]) -> None:
    ruleset = [chain(), chain("rest", hook=None)]
    ruleset += [{"rule": {"family": "inet", "table": "filter", "chain": of, "expr": e, "handle": 1}} for of, e in rules]
    assert len(dropping(ruleset, "algate")) <= 1


def test_findings_name_what_is_stopped_and_the_line_that_lets_it_through() -> None:
    line = "inet filter forward ct mark and 0x20000000 == 0x20000000 accept"
    tried = [
        Tried("IPv4: a pinhole", True, "inet filter rest: counter reject", (line,)),
        Tried("IPv4: media", True, "inet filter rest: counter reject", (line,)),
        Tried("IPv4: SOCKS", True),
        Tried("IPv6: SOCKS", False, "ip6 filter INPUT: policy drop"),
    ]
    first, second = findings(tried, "algate")
    assert first.check == "openings through inet filter forward"
    assert first.detail == "inet filter rest: counter reject stops IPv4: a pinhole; IPv4: media"
    assert first.remedy == f"nft insert rule {line} comment algate"
    assert (second.detail, second.remedy) == (
        "IPv6: SOCKS: stopped by ip6 filter INPUT: policy drop",
        "algate rules apply",
    )
    (well,) = findings(tried[2:3], "algate")
    assert well.status == "ok"

"""Which rules let two servers exchange files (FXP)."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from alg.address import Endpoint
from gateway.config.rules import RuleError, compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.policy.decide import Policy

CLIENT, SERVER, OTHER = "192.168.56.10", "203.0.113.10", "198.51.100.7"
ROUTER = "203.0.113.2"


def rule(action: str = "permit", **selectors: Any) -> RuleSection:
    if "from" in selectors:
        selectors["from_"] = selectors.pop("from")
    return RuleSection(action=action, **selectors)  # type: ignore[arg-type]


def fxp(*to: str, **changes: Any) -> RuleSection:
    selectors: dict[str, Any] = {"command": ("fxp",), "from": (CLIENT,), "to": to, **changes}
    return rule(**selectors)


def permitted(*sections: RuleSection, other: str = OTHER, user: str | None = None) -> bool:
    rules = [compile_rule(section, f"rule[{i}]", "") for i, section in enumerate(sections)]
    own = ipaddress.ip_address(ROUTER)
    policy = Policy([ipaddress.ip_network("192.168.56.0/24")], rules, is_own=lambda address: address == own)
    client, ends = Endpoint(CLIENT, 40000), (Endpoint(SERVER, 21), Endpoint(other, 51210))
    return policy.permits_transfer(client, user, *ends)


@pytest.mark.parametrize(
    "sections",
    [
        [fxp(SERVER, OTHER)],
        [fxp("203.0.113.0/24", "198.51.100.0/24")],
        [fxp("0.0.0.0/0")],
        [fxp(SERVER, OTHER, port=(21, "1024-65535"))],
        [rule("deny", to=("192.0.2.1",)), fxp(SERVER, OTHER), rule("deny")],
    ],
)
def test_permitted(sections: list[RuleSection]) -> None:
    assert permitted(*sections)


@pytest.mark.parametrize(
    "sections",
    [
        [],
        [rule()],  # what is said of all commands
        [rule(command=("connect", "transparent"))],
        [fxp(SERVER)],
        [fxp(OTHER)],
        [fxp(SERVER), fxp(OTHER)],  # no rule names both
        [fxp(SERVER, OTHER, **{"from": ("192.168.56.11",)})],
        [fxp(SERVER, OTHER, port=(21,))],
        [fxp(SERVER, OTHER, user=("ann",))],
        [rule("deny", to=(OTHER,)), fxp(SERVER, OTHER)],
        [rule("deny", command=("fxp",)), fxp(SERVER, OTHER)],
    ],
)
def test_not_permitted(sections: list[RuleSection]) -> None:
    assert not permitted(*sections)


def test_of_a_user() -> None:
    assert permitted(fxp(SERVER, OTHER, user=("ann",)), user="ann")


@pytest.mark.parametrize("other", [ROUTER, "192.168.56.20", "127.0.0.1", "224.0.0.1", "0.0.0.0"])
def test_a_wide_rule_names_nothing_that_is_protected(other: str) -> None:
    assert not permitted(fxp("0.0.0.0/0"), other=other)


def test_what_is_protected_can_be_named() -> None:
    assert permitted(fxp(SERVER, "192.168.56.20"), other="192.168.56.20")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"from": ()}, "from"),
        ({"to": ()}, "to"),
        ({"to": (SERVER, "*.example.com")}, "to"),
        ({"group": ("staff",)}, "group"),
    ],
)
def test_a_rule_that_does_not_name_both_ends(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(RuleError) as error:
        compile_rule(fxp(SERVER, OTHER, **changes), "x", "")
    assert error.value.key == key

"""Which rules attach a kernel helper to the flows of a module: read from what iptables-save and nft print."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.host.helpers import in_raw_rules, in_ruleset

MODULES = {"ftp": [21, 2121], "sip": [5060]}
HELPER = {"family": "inet", "name": "myftp", "table": "x", "type": "ftp", "protocol": "tcp", "l3proto": "inet"}


@pytest.mark.parametrize(
    ("line", "helper"),
    [
        ("-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp", "ftp"),
        ("-A OUTPUT -p tcp -m multiport --dports 20:22,990 -j CT --helper ftp", "ftp"),
        ("-A PREROUTING -p udp -m udp --dport 5060 -j CT --helper sip", "sip"),
        ("-A PREROUTING -p tcp -j CT --helper ftp", "ftp"),
        ("-A PREROUTING -p tcp -m tcp --dport 2121 -j CT --helper ftp-2121", "ftp"),
        ("-A PREROUTING -p tcp -m tcp --dport 2122 -j CT --helper ftp", None),
        ("-A PREROUTING -p udp -m udp --dport 69 -j CT --helper tftp", None),
        ("-A PREROUTING -p tcp -m tcp --dport 21 -j CT --notrack", None),
        ("-A PREROUTING -p tcp -m tcp --dport 21 -j ACCEPT", None),
    ],
)
def test_rules_of_iptables(line: str, helper: str | None) -> None:
    found = list(in_raw_rules(f"*raw\n:PREROUTING ACCEPT [0:0]\n{line}\nCOMMIT\n", "iptables", MODULES))
    assert [attachment.helper for attachment in found] == ([helper] if helper else [])
    for attachment in found:
        assert attachment.detach == f"iptables -t raw {line.replace('-A', '-D')}"


def dport(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}}


def ruleset(*expressions: Any, table: str = "x") -> str:
    rule = {"family": "inet", "table": table, "chain": "c", "handle": 7, "expr": list(expressions)}
    return json.dumps({"nftables": [{"metainfo": {}}, {"ct helper": HELPER}, {"rule": rule}]})


@pytest.mark.parametrize(
    ("text", "attached"),
    [
        (ruleset(dport(21), {"ct helper": "myftp"}), True),
        (ruleset(dport({"set": [20, {"range": [2000, 3000]}]}), {"ct helper": "myftp"}), True),
        (ruleset({"ct helper": "myftp"}), True),
        (ruleset(dport("@named"), {"ct helper": "myftp"}), True),
        (ruleset({"ct helper": {"map": {"key": {}, "data": {"set": [[21, "myftp"]]}}}}), True),
        (ruleset({"ct helper": {"map": {"key": {}, "data": {"set": [[990, "myftp"]]}}}}), False),
        (ruleset(dport(990), {"ct helper": "myftp"}), False),
        (ruleset(dport(21), {"ct helper": "other"}), False),
        (ruleset(dport(21), {"ct helper": "myftp"}, table="y"), False),  # an object of another table
        (ruleset(dport(21), {"accept": None}), False),
        ("", False),
        ("{}", False),
    ],
)
def test_rules_of_nft(text: str, attached: bool) -> None:
    found = list(in_ruleset(text, MODULES))
    assert [attachment.helper for attachment in found] == ["ftp"] * attached
    for attachment in found:
        assert attachment.detach == "nft delete rule inet x c handle 7"


def test_a_module_that_is_off_has_no_conflict() -> None:
    assert not list(in_ruleset(ruleset({"ct helper": "myftp"}), {"sip": [5060]}))
    assert not list(in_raw_rules("-A PREROUTING -j CT --helper ftp", "iptables", {}))


@given(st.text(max_size=200))
def test_any_rule_is_read(text: str) -> None:
    list(in_raw_rules(f"-A PREROUTING {text} -j CT --helper ftp", "iptables", MODULES))
    list(in_ruleset(text, MODULES))

"""What a policy says beside permit and deny: before a name is resolved, for any peer, for ident, for upstreams."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from alg.address import Endpoint
from gateway.config.access_file import Lookups, parse_access_file
from gateway.config.load import parse_config
from gateway.config.rules import policy_of
from gateway.model.hosts import canonical_name, configured_name, seen_through
from gateway.model.requests import CommandName, ConnectRequest
from gateway.policy.decide import Policy


def policy(text: str) -> Policy:
    upstream = '[[upstream]]\nname = "up"\nkind = "socks5"\naddress = "192.0.2.9:1080"\n'
    return policy_of(parse_config(upstream + text, "test"))


def request(
    host: str = "example.com", command: CommandName = "connect", user: str | None = None, port: int = 443
) -> ConnectRequest:
    return ConnectRequest(command, Endpoint.of("192.168.56.10", 40000), host, port, user)


def rule(action: Any = "permit", **keys: object) -> str:
    lines = [f"{key} = {repr(value).replace('True', 'true')}" for key, value in keys.items()]
    return "\n".join(["[[rule]]", f"action = '{action}'", *lines, ""])


def test_a_stranger_causes_no_lookup() -> None:
    rules = policy(rule(**{"from": ["10.0.0.0/8"]}))
    assert not rules.judge(request()).client.permit


def test_a_name_that_is_denied_is_not_looked_up() -> None:
    rules = policy(rule("deny", name="bad", to=["*.bad.test"]) + rule())
    decision = rules.judge(request("www.BAD.test.")).client
    assert (decision.permit, decision.rule) == (False, "bad")
    assert rules.judge(request("good.test")).client.permit


def test_a_name_may_lead_to_an_address_that_is_permitted() -> None:
    rules = policy(rule(to=["203.0.113.0/24"]))
    assert rules.judge(request()).client.permit
    assert rules.judge(request()).at(ipaddress.ip_address("203.0.113.1")).permit
    assert not rules.judge(request()).at(ipaddress.ip_address("198.51.100.1")).permit


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("", False),
        (rule(command=["bind"]), False),
        (rule(command=["bind"], any_peer=True), True),
        (rule("deny", command=["bind"]) + rule(any_peer=True), False),
        (rule("deny", to=["10.0.0.0/8"]) + rule(any_peer=True), True),  # those are still denied when they come
        (rule(user=["ann"], any_peer=True), False),
    ],
)
def test_any_peer(rules: str, expected: bool) -> None:
    assert policy(rules).judge(request("0.0.0.0", "bind")).permits_any_peer is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("", False),
        (rule(), False),
        (rule(ident=True), True),
        (rule(ident=True, user=["ann"]), True),
        (rule(ident=True, port=[22]), False),
        (rule() + rule(ident=True), False),
        (rule(to=["10.0.0.0/8"]) + rule(ident=True), True),
        (rule("deny", user=["bob"], ident=True) + rule(), True),
    ],
)
def test_ident_is_demanded(rules: str, expected: bool) -> None:
    assert policy(rules).demands_ident(request()) is expected


def test_a_rule_with_ident_wants_a_confirmed_user() -> None:
    rules = policy(rule(ident=True))
    address = ipaddress.ip_address("203.0.113.1")
    assert not rules.judge(request()).at(address).permit
    assert rules.judge(request(user="ann")).at(address).permit


def test_what_else_a_rule_says() -> None:
    rules = policy(rule(via=["up"], bandwidth=1000, max_sessions=3, log="warning", name="all"))
    decision = rules.judge(request()).at(ipaddress.ip_address("203.0.113.1"))
    assert (decision.rule, decision.via, decision.rate, decision.log) == ("all", ("up",), 1000.0, "warning")
    assert decision.limits is not None
    assert decision.limits.sessions == 3


def test_what_is_decided_by_the_name_alone() -> None:
    address = rule(to=["203.0.113.0/24"], via="up")
    assert policy(rule(via="up")).judge(request()).by_name is not None
    assert policy(rule(to=["*.com"], via="up")).judge(request()).by_name is not None
    assert policy(rule()).judge(request()).by_name is None
    assert policy(address).judge(request()).by_name is None
    assert policy(address + rule(via="up")).judge(request()).by_name is None
    assert policy(rule("deny", to=["*.com"]) + rule(via="up")).judge(request()).by_name is None
    assert policy(rule(via="up")).judge(request("203.0.113.1")).by_name is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("192.0.2.1", ["192.0.2.1"]),
        ("::ffff:192.0.2.1", ["192.0.2.1"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("64:ff9b::192.0.2.1", ["64:ff9b::c000:201", "192.0.2.1"]),
        ("2002:c000:201::1", ["2002:c000:201::1", "192.0.2.1"]),
        ("2001:0:cb00:710a:0:ffff:3fff:fdfe", ["2001:0:cb00:710a:0:ffff:3fff:fdfe", "203.0.113.10", "192.0.2.1"]),
        ("::192.0.2.1", ["::c000:201", "192.0.2.1"]),
        ("::1", ["::1"]),
        ("::", ["::"]),
    ],
)
def test_addresses_are_seen_through(text: str, seen: list[str]) -> None:
    assert list(map(str, seen_through(ipaddress.ip_address(text)))) == seen


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.COM.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a_b.example", "a_b.example"),
        ("-a.b-.example", "-a.b-.example"),
        ("x" * 63 + ".example", "x" * 63 + ".example"),
        ("-a.test", "-a.test"),
        ("r4---sn-.Example.com", "r4---sn-.example.com"),
        ("_sip._udp.example", "_sip._udp.example"),
        ("a.-.example", "a.-.example"),
        ("-.example.", "-.example"),
        ("x_.example", "x_.example"),
        ("a+b!c.example", "a+b!c.example"),
        ("*.example", "*.example"),
        ("Straße.Example", "xn--strae-oqa.example"),
        ("βόλος。example", "xn--nxasmm1c.example"),
        ("stra\u00dfe", "xn--strae-oqa"),
        ("ẞ.example", "xn--zca.example"),
        ("printer.12", "printer.12"),
        ("1.2.3.4.Example", "1.2.3.4.example"),
        ("x" * 63 + ".example.", "x" * 63 + ".example"),
        ("a." * 126 + "a", "a." * 126 + "a"),
    ],
)
def test_one_spelling_for_one_name(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "ex\\097mple.com",
        "127.1",
        "0x7f000001",
        "1.2.3.4.5",
        "10.0x1",
        "a b",
        "a\0b",
        "x" * 64,
        "a." * 127 + "aa",
        "a/b.test",
        "[::1]",
        "ß\u2024evil.test",  # a leader of one dot, which is a dot to whom normalizes
        "ß\u2488.test",
        "a\u2024b.test",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        canonical_name(text)


@pytest.mark.parametrize("text", ["*", "a.*.test", "*.*.test", "a*.test"])
def test_a_rule_means_no_label_of_an_asterisk(text: str) -> None:
    """A client may ask for such a name; in a rule it would mean something else than it says."""
    with pytest.raises(ValueError, match="is not a host name"):
        configured_name(text)
    assert canonical_name(text) == text


def test_an_asterisk_is_one_at_any_width() -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        configured_name("\uff0a.test")


def test_names_in_the_access_file() -> None:
    lookups = Lookups(lambda name: {"gate": ["192.0.2.1", "192.0.2.2"]}[name], {"http": 80}.__getitem__, str)
    text = "permit gate 0.0.0.0 0.0.0.0 255.255.255.255 neq http\ndeny 0.0.0.0 255.255.255.255 lt 0\n"
    (line,) = parse_access_file(text, "f", "inverted", lookups)
    assert line.rule.from_ == ("192.0.2.1/255.255.255.255", "192.0.2.2/255.255.255.255")
    assert line.rule.to == ()
    assert line.rule.port == ("0-79", "81-65535")


def test_the_masks_of_later_versions() -> None:
    lookups = Lookups(lambda name: [], lambda name: 0, str)
    (line,) = parse_access_file("permit 192.0.2.77 255.255.255.0", "f", "netmask", lookups)
    assert line.rule.from_ == ("192.0.2.0/255.255.255.0",)

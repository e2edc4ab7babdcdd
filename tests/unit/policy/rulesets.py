"""Random rules and requests, and the meaning of a set of rules as a plain loop: for the index to be held against."""

from __future__ import annotations

import ipaddress
import random

from alg.address import Address, Endpoint
from gateway.config.rules import compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.model.requests import CommandName, ConnectRequest
from gateway.policy.rules import Prefix, Query, Rule, why_not

COMMANDS: tuple[CommandName, ...] = ("connect", "bind", "udp", "resolve", "transparent")  # fxp: test_transfers.py
NAMES = ("example.com", "www.example.com", "a.b.example.com", "example.org", "com", "intranet")
PATTERNS = (*NAMES, "*.example.com", "*.com", "*.b.example.com", "*.org")
PREFIXES = (
    "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "192.0.2.128/25", "127.0.0.0/8", "127.0.0.1",
    "10.0.0.7/255.0.0.255", "::/0", "2001:db8::/32", "2001:db8::1", "fe80::/10", "64:ff9b::/96", "::ffff:10.1.0.0/112",
)  # fmt: skip
ADDRESSES = (
    "10.1.2.3", "10.9.9.7", "192.0.2.1", "192.0.2.200", "127.0.0.1", "203.0.113.9", "2001:db8::1", "2001:db8:1::7",
    "::1", "fe80::7", "64:ff9b::a01:203", "2002:a01:203::1", "::ffff:10.1.2.3", "0.0.0.0", "224.0.0.1",
)  # fmt: skip
PORTS: tuple[int | str, ...] = (22, 80, 443, "80-90", "1024-65535", "0-79", "85-443")
USERS = ("ann", "bob")
GROUPS = ("staff", "ops")
TIMES = ("Mo-Fr 08:00-18:00", "22:00-06:00", "Sa,Su", "Su 23:00-01:00")


def some(chance: random.Random, words: tuple[str, ...], most: int = 2) -> tuple[str, ...]:
    """None of them in half of the cases, else up to `most`."""
    return tuple(chance.sample(words, chance.randint(1, most))) if chance.random() < 0.5 else ()


def section(chance: random.Random) -> RuleSection:
    return RuleSection(
        action="permit" if chance.random() < 0.6 else "deny",
        command=tuple(chance.sample(COMMANDS, 2)) if chance.random() < 0.3 else (),
        from_=some(chance, PREFIXES),
        to=some(chance, PREFIXES + PATTERNS, 3),
        port=tuple(chance.sample(PORTS, 2)) if chance.random() < 0.3 else (),
        user=some(chance, USERS) if chance.random() < 0.4 else (),
        group=some(chance, GROUPS) if chance.random() < 0.4 else (),
        time=some(chance, TIMES) if chance.random() < 0.4 else (),
        ident=chance.random() < 0.1,
    )


def rules(chance: random.Random, count: int) -> list[Rule]:
    return [compile_rule(section(chance), f"rule[{i}]", "") for i in range(count)]


def request(chance: random.Random) -> ConnectRequest:
    user = chance.choice((None, *USERS))
    return ConnectRequest(
        chance.choice(COMMANDS),
        Endpoint.of(chance.choice(ADDRESSES), 40000),
        chance.choice(ADDRESSES + NAMES + ("WWW.Example.COM.", "nowhere.test")),
        chance.choice((21, 22, 79, 80, 84, 85, 90, 91, 443, 8080)),
        user,
        groups=some(chance, GROUPS) if user else (),
    )


def target(chance: random.Random) -> Address:
    return ipaddress.ip_address(chance.choice(ADDRESSES))


def first_match(candidates: list[Rule], query: Query, address: Address, protected: Prefix | None) -> Rule | None:
    """What the first rule that matches is, by looking at each."""
    return next((rule for rule in candidates if why_not(rule, query, address, protected) is None), None)

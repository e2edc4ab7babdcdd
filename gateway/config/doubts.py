"""Finds settings that are valid but can hardly be meant. Each doubt begins with the path of the key."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.rules import compile_rules
from gateway.config.schema import Config, parse_endpoint
from gateway.policy.rules import Rule, covers

_MOST_EARLIER = 256
_IDENTIFYING = frozenset({"ident", "password", "gssapi"})


def doubts(config: Config) -> Iterator[str]:
    """Return each doubt about a valid configuration as "KEY: what is odd, and what to do"."""
    for i, network in enumerate(config.inside_networks):
        if network.prefixlen == 0:
            yield f"network.inside[{i}]: {network} is everybody: whoever reaches this gateway may use it"
    low, high = config.pinhole_ports
    listening = [(f"socks.listen[{i}]", text) for i, text in enumerate(config.socks.listen)]
    for key, text in (*listening, *([("console.listen", config.console.listen)] if config.console.listen else [])):
        if low <= parse_endpoint(text).port <= high:
            yield f"{key}: its port is one of pinhole.ports ({config.pinhole.ports}), which are for the world outside"
    if config.socks.listen and not _IDENTIFYING.intersection(config.socks.auth):
        for i, section in enumerate(config.rule):
            if (section.user or section.group) and not section.ident:  # with `ident` the client's host is asked
                key = "user" if section.user else "group"
                yield f"rule[{i}].{key}: never matches: by no method of socks.auth does a client prove who it is"
    rules, _ = compile_rules(config)
    yield from _shadowed(rules)


def _shadowed(rules: list[Rule]) -> Iterator[str]:
    """Find rules that never decide because an earlier rule covers them. Each rule is compared with the first rules
    only, so that thousands of rules take little time: a rule that covers others by mistake is nearly always one of the
    first."""
    earlier_rules: list[Rule] = []
    fxp = any("fxp" in rule.commands for rule in rules)
    for i, rule in enumerate(rules):
        first = next((earlier for earlier in earlier_rules if covers(earlier, rule, fxp=fxp)), None)
        if first is not None:
            where = f" ({first.place})" if first.place else ""
            yield f"rule[{i}]: never decides: {first.label}{where} stands before it and matches all that it does"
        elif len(earlier_rules) < _MOST_EARLIER:
            earlier_rules.append(rule)

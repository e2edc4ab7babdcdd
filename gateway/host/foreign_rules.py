"""Finds address translation by rules of other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from gateway.host.programs import output_of

DSTNAT = -100  # the priority at which iptables translates; pinholes do a little earlier
_RULE = re.compile(r"-A (\S+) .*-p tcp .*--dports? (\S+) .*-j (?:REDIRECT|DNAT)\b")


def translators(ports: Collection[int], instance: str) -> list[str]:
    """Describe the rules that translate connections to TCP `ports` before `instance` sees them. Needs root."""
    found = list(in_ruleset(output_of(["nft", "-j", "list", "ruleset"]), instance))
    for program in ("iptables", "ip6tables"):
        found += in_nat_rules(output_of([f"{program}-save", "-t", "nat"]), program, ports)
    return found


def in_ruleset(text: str, instance: str) -> Iterator[str]:
    """Find translating chains before iptables' own, in a ruleset as `nft -j list ruleset` writes it."""
    try:
        entries = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):  # nft is not there, or too old to say it so
        return
    translating = {
        (rule["family"], rule["table"], rule["chain"])
        for rule in (entry["rule"] for entry in entries if "rule" in entry)
        if any({"dnat", "redirect"} & set(statement) for statement in rule["expr"])
    }
    for chain in (entry["chain"] for entry in entries if "chain" in entry):
        place = (chain["family"], chain["table"], chain["name"])
        early = chain.get("hook") == "prerouting" and chain.get("prio", 0) < DSTNAT
        if early and place in translating and chain["table"] != instance:
            yield f"nft {' '.join(place)} (priority {chain['prio']})"


def in_nat_rules(text: str, program: str, ports: Collection[int]) -> Iterator[str]:
    """Find such rules in iptables' nat table, as iptables-save writes it, in chains that are not ours."""
    for line in text.splitlines():
        rule = _RULE.match(line)
        if rule and not rule[1].lower().startswith("algate") and {*rule[2].split(",")} & {*map(str, ports)}:
            yield f"{program} -t nat {line}"

"""Finds chains of other firewalls that drop what the gateway admits, and the lines that they need."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.broker.marks import ADMITTED
from gateway.config.schema import Config
from gateway.host.native import lines_for
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError

_IPTABLES = {(family, table) for family in ("ip", "ip6") for table in ("filter", "nat", "mangle", "raw", "security")}
_HOOKS = ("input", "forward", "prerouting", "output", "postrouting")
_PROTOCOLS = (("tcp", 6), ("udp", 17))
_INTERFACES = frozenset({"iif", "iifname", "oif", "oifname"})


class ForeignChain(NamedTuple):
    """A base chain of another firewall. `comments`: the comments of its rules; `admits`: whether it accepts our
    mark."""

    family: str
    table: str
    name: str
    hook: str
    why: str
    comments: tuple[str, ...]
    admits: bool
    priority: int = 0

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


class Missing(NamedTuple):
    """A line that a chain needs."""

    chain: ForeignChain
    line: str

    def command(self, instance: str) -> str:
        """Return the command that adds the line at the chain's beginning."""
        return f"nft insert rule {self.chain} {self.line} comment {instance}"


def ruleset() -> list[dict[str, Any]]:
    """Return the host's nf_tables objects, as `nft -j` lists them. Raises AlgateError without CAP_NET_ADMIN or nft."""
    entries: list[dict[str, Any]] = json.loads(run_program(["nft", "-j", "-t", "list", "ruleset"]))["nftables"]
    return entries


def why_unseen() -> str:
    """Return why this process does not see the rules of other programs; "" if it does."""
    try:
        ruleset()
    except AlgateError as error:
        return str(error)
    return ""


def dropping(
    entries: Sequence[Mapping[str, Any]], instance: str, facing: Collection[str] | None = None
) -> list[ForeignChain]:
    """Return the chains that drop what they do not know: by their policy, or by a rule in them or in a chain that they
    lead to, without a condition but for interfaces, protocols and new connections. `facing`: the interfaces that matter
    (None: all). iptables-nft's own chains are left out, because our jumps come first there."""
    return [chain for chain in candidates(entries, instance, facing) if chain.why]


def candidates(
    entries: Sequence[Mapping[str, Any]], instance: str, facing: Collection[str] | None = None
) -> list[ForeignChain]:
    """Return the base chains of other firewalls in which packets can be dropped. `why` is "" for those that do not seem
    to drop."""
    rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
    found = []
    for chain in (entry["chain"] for entry in entries if "chain" in entry):
        family, table, name = chain["family"], chain["table"], chain["name"]
        filters = chain.get("type") in ("filter", "route")
        if chain.get("hook") not in _HOOKS or not filters or family not in ("ip", "ip6", "inet"):
            continue
        if _is_ours(table, entries) or ((family, table) in _IPTABLES and name == chain["hook"].upper()):
            continue
        place = (family, table, name)
        why = "policy drop" if chain.get("policy") == "drop" else _dropping_rule(rules, place, set(), facing)
        own = rules.get(place, [])
        comments = tuple(str(rule["comment"]) for rule in own if "comment" in rule)
        admits = any(map(_admits, own))
        found.append(ForeignChain(*place, chain["hook"], why, comments, admits, int(chain.get("prio", 0))))
    return found


def facing(config: Config) -> set[str] | None:
    """Return the interfaces of the inside, and those of default routes; None if there are no default routes."""
    found: set[str] = set()
    for path, name, destination in (("/proc/net/route", 0, 1), ("/proc/net/ipv6_route", 9, 0)):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as lines:
            rows = [line.split() for line in lines]
            found.update(row[name] for row in rows if len(row) > name and not row[destination].strip("0"))
    return {*config.network.inside_interfaces, *found} if found - {"lo"} else None


def missing(entries: Sequence[Mapping[str, Any]], config: Config) -> list[Missing]:
    """Return the lines that dropping chains seem to need and do not have; none for a chain that has any of ours, or
    accepts the mark by a rule of its own."""
    return [
        Missing(chain, line)
        for chain in dropping(entries, config.instance, facing(config))
        if config.instance not in chain.comments and not chain.admits
        for line in lines_for(config, chain.hook, chain.family, chain.priority)
    ]


def add(config: Config) -> list[str]:
    """Insert the lines into all dropping chains, in place of those that were inserted before. Returns what could not be
    done, and why. Raises AlgateError."""
    entries = ruleset()
    failures = []
    for chain in dropping(entries, config.instance, facing(config)):
        script = [*_deletions(entries, config.instance, chain)]
        for line in reversed(lines_for(config, chain.hook, chain.family, chain.priority)):
            script.append(f'insert rule {chain} {line} comment "{config.instance}"')
        try:
            run_program(["nft", "-f", "-"], "".join(f"{line}\n" for line in script))
        except AlgateError as error:
            failures.append(f"{chain}: {error}")
    return failures


def remove(instance: str) -> None:
    """Delete all lines that were inserted for this instance. Raises AlgateError."""
    script = list(_deletions(ruleset(), instance))
    if script:
        run_program(["nft", "-f", "-"], "".join(f"{line}\n" for line in script))


def _deletions(entries: Sequence[Mapping[str, Any]], instance: str, chain: ForeignChain | None = None) -> Iterator[str]:
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        place = (rule["family"], rule["table"], rule["chain"])
        if rule.get("comment") == instance and (chain is None or place == chain[:3]):
            yield f"delete rule {' '.join(place)} handle {rule['handle']}"


def _is_ours(table: str, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a table is one of an instance of algate, or one that `algate rules show --nft` prints."""
    tables = [entry["table"] for entry in entries if "table" in entry]
    comments = [str(entry.get("comment", "")) for entry in tables if entry["name"] == table]
    return table.startswith("algate") or any(comment.startswith("algate ") for comment in comments)


def _dropping_rule(
    rules: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]],
    place: tuple[str, str, str],
    seen: set[tuple[str, str, str]],
    facing: Collection[str] | None,
) -> str:
    """Return the place of a rule that drops or rejects what is new, in this chain or one that it leads to; "" if there
    is none."""
    seen.add(place)
    for rule in rules.get(place, ()):
        statements = [statement for statement in rule["expr"] if isinstance(statement, dict)]
        kinds = {kind for statement in statements for kind in statement}
        matches = [statement["match"] for statement in statements if "match" in statement]
        ends = kinds & {"drop", "reject"} and not kinds & {"vmap", "xt", "limit"}
        if ends and all(_is_broad(match, facing) for match in matches):
            what = "all" if not matches else "what is new"
            return f"a rule that {'drops' if 'drop' in kinds else 'rejects'} {what} in {' '.join(place)}"
        for name in _targets(rule["expr"]):
            target = (place[0], place[1], name)
            if target not in seen and (why := _dropping_rule(rules, target, seen, facing)):
                return why
    return ""


def _is_broad(match: Mapping[str, Any], facing: Collection[str] | None) -> bool:
    """Whether what we admit may meet a condition: it is about interfaces, protocols or new connections only."""
    left, right, same = match.get("left"), match.get("right"), match.get("op") != "!="
    values = right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right]
    if not isinstance(left, dict):
        return False
    key = left.get("meta", {}).get("key") if "meta" in left else None
    if key in _INTERFACES:
        return (
            facing is None
            or not all(isinstance(value, str) for value in values)
            or any((name in values) == same for name in facing)
        )
    if key == "l4proto":  # of what we admit, or nothing that matters
        return any((name in values or number in values) == same for name, number in _PROTOCOLS)
    if key in ("nfproto", "protocol"):
        return True
    return left.get("ct") == {"key": "state"} and ("new" in values) == same


def _targets(value: Any) -> Iterator[str]:
    """Return the chains to which an expression may jump or go."""
    if isinstance(value, dict):
        for kind, inner in value.items():
            if kind in ("jump", "goto") and isinstance(inner, dict) and "target" in inner:
                yield str(inner["target"])
            else:
                yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _admits(rule: Mapping[str, Any]) -> bool:
    """Whether a rule accepts by our mark, and by nothing else."""
    statements = [statement for statement in rule["expr"] if isinstance(statement, dict)]
    matches = [statement["match"] for statement in statements if "match" in statement]
    if len(matches) != 1 or not any("accept" in statement for statement in statements):
        return False
    left = matches[0].get("left")
    masked = left.get("&") if isinstance(left, dict) else None
    return (
        isinstance(masked, list)
        and masked[0] == {"ct": {"key": "mark"}}
        and isinstance(masked[1], int)
        and bool(masked[1] & ADMITTED)
    )

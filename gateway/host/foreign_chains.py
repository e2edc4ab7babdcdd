"""Finds chains of other firewalls that drop what the gateway admits, and the lines that they need."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.broker.marks import ADMITTED
from gateway.config.schema import Config
from gateway.host.native import lines_for
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError

_IPTABLES = {(family, table) for family in ("ip", "ip6") for table in ("filter", "nat", "mangle", "raw", "security")}
_HOOKS = ("input", "forward")


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


def dropping(entries: Sequence[Mapping[str, Any]], instance: str) -> list[ForeignChain]:
    """Return the chains at input and forward that drop what they do not know: by their policy, or by a rule without a
    condition in them or in a chain that they lead to. iptables-nft's own chains are left out, because our jumps come
    first there."""
    rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
    found = []
    for chain in (entry["chain"] for entry in entries if "chain" in entry):
        family, table, name = chain["family"], chain["table"], chain["name"]
        if chain.get("hook") not in _HOOKS or chain.get("type") != "filter" or family not in ("ip", "ip6", "inet"):
            continue
        if _is_ours(table, entries) or ((family, table) in _IPTABLES and name == chain["hook"].upper()):
            continue
        why = "policy drop" if chain.get("policy") == "drop" else _dropping_rule(rules, (family, table, name), set())
        if why:
            own = rules.get((family, table, name), [])
            comments = tuple(str(rule["comment"]) for rule in own if "comment" in rule)
            found.append(ForeignChain(family, table, name, chain["hook"], why, comments, any(map(_admits, own))))
    return found


def missing(entries: Sequence[Mapping[str, Any]], config: Config) -> list[Missing]:
    """Return the lines that dropping chains seem to need and do not have; none for a chain that has any of ours, or
    accepts the mark by a rule of its own."""
    return [
        Missing(chain, line)
        for chain in dropping(entries, config.instance)
        if config.instance not in chain.comments and not chain.admits
        for line in lines_for(config, chain.hook, chain.family)
    ]


def add(config: Config) -> list[str]:
    """Insert the lines into all dropping chains, in place of those that were inserted before. Returns what could not be
    done, and why. Raises AlgateError."""
    entries = ruleset()
    failures = []
    for chain in dropping(entries, config.instance):
        script = [*_deletions(entries, config.instance, chain)]
        for line in reversed(lines_for(config, chain.hook, chain.family)):
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
    """Whether it is the table of an instance of ours, or one that `algate rules show --nft` prints."""
    tables = [entry["table"] for entry in entries if "table" in entry]
    comments = [str(entry.get("comment", "")) for entry in tables if entry["name"] == table]
    return table.startswith("algate") or any(comment.startswith("algate ") for comment in comments)


def _dropping_rule(
    rules: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]],
    place: tuple[str, str, str],
    seen: set[tuple[str, str, str]],
) -> str:
    """Return the place of a rule without a condition that drops or rejects, in this chain or one that it leads to; ""
    if there is none."""
    seen.add(place)
    for rule in rules.get(place, ()):
        statements = [statement for statement in rule["expr"] if isinstance(statement, dict)]
        kinds = {kind for statement in statements for kind in statement}
        if kinds & {"drop", "reject"} and not kinds & {"match", "vmap", "xt", "limit"}:
            return f"a rule that {'drops' if 'drop' in kinds else 'rejects'} all in {' '.join(place)}"
        for name in _targets(rule["expr"]):
            target = (place[0], place[1], name)
            if target not in seen and (why := _dropping_rule(rules, target, seen)):
                return why
    return ""


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

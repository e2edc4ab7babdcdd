"""Finds kernel helpers (nf_conntrack_ftp, nf_conntrack_sip) that would edit the same flows as a module of ours.

Two editors of one stream destroy it: the helper changes addresses that the module has changed already, shifts sequence
numbers below a relay, and opens ports that our policy has not permitted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alg.api import Mode
from gateway.config.schema import Config
from gateway.host.programs import output_of
from gateway.model.errors import AlgateError

HELPERS = ("ftp", "sip", "tftp", "rtsp", "irc", "pptp")
"""Modules that have a kernel helper of the same name."""

_SYSCTL = Path("/proc/sys/net/netfilter/nf_conntrack_helper")
_CT_RULE = re.compile(r"-j CT\b.* --helper (\S+)")
_PORTS = re.compile(r"--dports? (\S+)")

Ports = Mapping[str, Sequence[int]]
"""The ports of each module."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A helper that is attached to flows of the module of the same name: where, and how to detach it."""

    helper: str
    where: str
    detach: str


def refuse_helpers(config: Config) -> None:
    """Raise AlgateError if a kernel helper is attached to flows of a module that is on."""
    for found in attached(ports_of(config)):
        raise AlgateError(
            f"alg.{found.helper}: the kernel's own {found.helper} helper is attached to the same flows"
            f" ({found.where}); detach it: {found.detach}"
        )


def ports_of(config: Config) -> Ports:
    """Return the ports of the modules with which a kernel helper could interfere."""
    return {name: section.ports for name, section in config.alg.items() if section.mode is not Mode.OFF}


def attached(modules: Ports) -> list[Attached]:
    """Return the helpers that are attached to flows of these modules. Needs root to see rules."""
    found = list(_automatic(modules))
    for prefix in ("iptables", "ip6tables"):
        text = output_of([f"{prefix}-save", "-t", "raw"])
        found += in_raw_rules(text, prefix, modules)
    found += in_ruleset(output_of(["nft", "-j", "list", "ruleset"]), modules)
    return found


def in_raw_rules(text: str, prefix: str, modules: Ports) -> Iterator[Attached]:
    """Find helpers in a table as iptables-save writes it. `prefix`: "iptables" or "ip6tables"."""
    for line in text.splitlines():
        rule = _CT_RULE.search(line)
        if rule is None or not line.startswith("-A "):
            continue
        helper = _module_of(rule[1], modules)
        named = _PORTS.search(line)
        if helper is not None and (named is None or _overlap(_port_ranges(named[1]), modules[helper])):
            yield Attached(helper, f"{prefix} -t raw {line}", f"{prefix} -t raw {line.replace('-A ', '-D ', 1)}")


def in_ruleset(text: str, modules: Ports) -> Iterator[Attached]:
    """Find helpers in a ruleset as `nft -j list ruleset` writes it."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):  # nft is not there, or too old to say it so
        return
    objects = [entry["ct helper"] for entry in entries if "ct helper" in entry]
    kinds = {(each["family"], each["table"], each["name"]): each["type"] for each in objects}
    for rule in (entry["rule"] for entry in entries if "rule" in entry):
        for statement in rule["expr"]:
            if "ct helper" not in statement:
                continue
            for name, ports in _assigned(statement["ct helper"], rule["expr"]):
                kind = kinds.get((rule["family"], rule["table"], name), "")
                helper = _module_of(kind, modules)
                if helper is not None and (ports is None or _overlap(ports, modules[helper])):
                    place = f"{rule['family']} {rule['table']} {rule['chain']}"
                    yield Attached(
                        helper,
                        f'nft {place}: ct helper set "{name}"',
                        f"nft delete rule {place} handle {rule['handle']}",
                    )


def _automatic(modules: Ports) -> Iterator[Attached]:
    """Find helpers that the kernel attaches by itself, by their well-known ports (before Linux 6.0)."""
    try:
        automatic = _SYSCTL.read_text().strip() == "1"
    except OSError:
        return
    for helper, port in (("ftp", 21), ("sip", 5060), ("tftp", 69)):
        if automatic and port in modules.get(helper, ()):
            yield Attached(
                helper, "sysctl net.netfilter.nf_conntrack_helper = 1", "sysctl -w net.netfilter.nf_conntrack_helper=0"
            )


def _module_of(helper: str, modules: Ports) -> str | None:
    """Return the module with which a helper interferes. "ftp-2121" is the helper of a further port."""
    name = helper.strip('"').partition("-")[0]
    return name if name in HELPERS and name in modules else None


def _assigned(value: Any, expressions: Sequence[Any]) -> Iterator[tuple[str, list[tuple[int, int]] | None]]:
    """Yield names of helper objects that a statement sets, and for which ports (None: any)."""
    if isinstance(value, str):
        yield value, _matched_ports(expressions)
    elif isinstance(value, dict) and "map" in value:
        data = value["map"].get("data")
        for item in data["set"] if isinstance(data, dict) and "set" in data else ():
            yield str(item[1]), _json_ranges(item[0])


def _matched_ports(expressions: Sequence[Any]) -> list[tuple[int, int]] | None:
    for expression in expressions:
        match = expression.get("match") if isinstance(expression, dict) else None
        left = match.get("left") if match else None
        payload = left.get("payload") if isinstance(left, dict) else None
        if match and match.get("op") == "==" and isinstance(payload, dict) and payload.get("field") == "dport":
            return _json_ranges(match["right"])
    return None


def _json_ranges(value: Any) -> list[tuple[int, int]] | None:
    if isinstance(value, int):
        return [(value, value)]
    if isinstance(value, dict) and "range" in value:
        low, high = value["range"]
        return [(int(low), int(high))]
    if isinstance(value, dict) and "set" in value:
        ranges = [_json_ranges(item) for item in value["set"]]
        return None if None in ranges else [ports for several in ranges if several for ports in several]
    return None  # a named set: its ports are not known, so it may be any


def _port_ranges(text: str) -> list[tuple[int, int]] | None:
    ranges = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        if not (low or "0").isdecimal() or not (high or "0").isdecimal():
            return None
        ranges.append((int(low or 0), int(high or 65535) if colon else int(low)))
    return ranges


def _overlap(ranges: Sequence[tuple[int, int]] | None, ports: Sequence[int]) -> bool:
    return ranges is None or any(low <= port <= high for low, high in ranges for port in ports)

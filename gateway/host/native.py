"""The bundled rules as native nft text, for hosts with nftables.service and for chains of other firewalls.

The rules are written in one place, `iptables/ipv4.rules` and `ipv6.rules`. iptables itself translates them
(iptables-restore-translate), except for the one match that it does not know.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from typing import NamedTuple

from gateway.broker.marks import ADMITTED
from gateway.config.schema import Config
from gateway.host import rules
from gateway.host.programs import run_program
from gateway.host.rules import FAMILIES, Family
from gateway.model.errors import AlgateError

_NFT_FAMILY: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}
_TRANSLATOR: dict[Family, str] = {"ipv4": "iptables-restore-translate", "ipv6": "ip6tables-restore-translate"}
# Where each built-in chain of iptables hooks in; the nat chains are a little before those of others.
_HOOKS = {
    ("nat", "PREROUTING"): "type nat hook prerouting priority -105; policy accept;",
    ("nat", "POSTROUTING"): "type nat hook postrouting priority 95; policy accept;",
    ("mangle", "PREROUTING"): "type filter hook prerouting priority -150; policy accept;",
    ("mangle", "FORWARD"): "type filter hook forward priority -150; policy accept;",
    ("raw", "PREROUTING"): "type filter hook prerouting priority -305; policy accept;",
}
CONNTRACK, TRANSLATES, ADMITS = -200, -190, -5
"""Priorities: connection tracking's, and those of the broker's chains that translate, and that mark what they admit."""
_RULE = re.compile(r"(?:add|insert) rule ip6? (\S+) (\S+) (.*)")
_UNKNOWN = re.compile(r"# -t (\S+) -A (\S+) (.*)")
_SOCKET = re.compile(r"-i (\S+) -m addrtype --dst-type LOCAL -m socket --nowildcard -j RETURN *$")


_FURTHER = {("mangle", "FROM"): "mangle-from", ("mangle", "TO"): "mangle-to"}
"""Chains to which others jump, and their names as nft text."""

_LOCAL, _TRANSLATED = "fib daddr type local", "ct status dnat"
"""Conditions for packets that are for this host, and for those that were for it before they were translated."""


class Line(NamedTuple):
    """A rule as nft text, with the table and the chain of iptables that it belongs to."""

    table: str
    chain: str
    text: str


def native(config: Config) -> str:
    """Return the rules that redirect clients to the gateway, as nft tables of their own; "" if there are none. Raises
    AlgateError.

    What lets admitted packets through is not included, because an accept in one table does not overrule a drop in
    another. Those lines are for the chains that drop (`lines_for`).
    """
    texts = []
    for family in FAMILIES:
        chains: dict[tuple[str, str], list[str]] = {}
        for line in translated(config, family):
            if (line.table, line.chain) in _HOOKS | _FURTHER:
                chains.setdefault((line.table, line.chain), []).append(line.text)
        name = f"{_NFT_FAMILY[family]} {config.instance}-rules"
        body = [
            f"\tchain {table}-{chain.lower()} {{\n"
            + (f"\t\t{_HOOKS[table, chain]}\n" if (table, chain) in _HOOKS else "")
            + "".join(f"\t\t{text}\n" for text in lines)
            + "\t}\n"
            for (table, chain), lines in sorted(chains.items(), key=lambda chain: chain[0] in _HOOKS)
        ]
        if body:
            texts.append(f"add table {name}\ndelete table {name}\ntable {name} {{\n" + "".join(body) + "}\n")
    return "".join(texts)


def lines_for(config: Config, hook: str, family: str, priority: int = 0) -> list[str]:
    """Return what a chain of another firewall has to accept, as nft rules, the most important first.

    `hook`, `priority`: where the chain is; `family` of its table: "ip", "ip6" or "inet". Raises AlgateError.
    """
    if hook == "output":
        return [_own(config)]
    if hook == "postrouting":
        return [f"ct mark and {ADMITTED:#x} == {ADMITTED:#x} accept", _own(config)]
    found: list[str] = []
    for name in FAMILIES:
        if family in (_NFT_FAMILY[name], "inet"):
            chain = "INPUT" if hook == "prerouting" else hook.upper()
            for line in translated(config, name):
                if (line.table, line.chain) == ("filter", chain) and not line.text.endswith("drop"):
                    found.append(line.text)
    found = sorted(dict.fromkeys(found), key=lambda text: not text.startswith("ct mark"))
    if hook == "prerouting":
        found = [line for line in found if "ct mark" not in line and "ct status" not in line]
        opened = _opened(config, _LOCAL, tracked=priority > CONNTRACK)
        if priority >= TRANSLATES:
            opened += _opened(config, _TRANSLATED)
        return [*opened, *_redirected(config), *found]
    if hook == "forward" and priority <= ADMITS:
        return [*_opened(config, _TRANSLATED), *found]  # the mark comes later
    if priority <= ADMITS:
        return [*_opened(config, _LOCAL), *found]
    return found


def _opened(config: Config, where: str, tracked: bool = True) -> list[str]:
    """Return rules for what comes from outside to a public port that may be open, before it is marked as admitted.

    `where`: the condition that it is for this host, or that it was translated: without it the rules would open these
    ports of every host inside that has a public address. So what a pinhole does not translate has no rule here.
    `tracked`: connection tracking is before this chain."""
    first, last = config.pinhole_ports
    names = ", ".join(f'"{name}"' for name in config.network.inside_interfaces)
    outside = f"iifname != {{ {names} }} " if names else ""
    port = "ct original proto-dst" if tracked else "th dport"
    return [f"{outside}{where} meta l4proto {protocol} {port} {first}-{last} accept" for protocol in ("tcp", "udp")]


def _redirected(config: Config) -> list[str]:
    """Return a rule for the connections of clients that the gateway reads, before they are redirected."""
    ports = ", ".join(str(port) for port in sorted({*config.module_ports(), *config.transparent.ports}))
    return [f'iifname "{name}" tcp dport {{ {ports} }} accept' for name in config.network.inside_interfaces if ports]


def _own(config: Config) -> str:
    """Return a rule for what the gateway's own processes send."""
    return f"meta skuid {{ {', '.join(str(user) for user in users_of(config))} }} accept"


def users_of(config: Config) -> list[int]:
    """Return the users that workers and broker run as."""
    found = []
    for name in (config.process.user, config.process.broker_user):
        with contextlib.suppress(KeyError):
            found.append(pwd.getpwnam(name).pw_uid)
    return sorted(set(found)) or [os.getuid()]


def translated(config: Config, family: Family) -> list[Line]:
    """Return the translated rules of one family. Raises AlgateError."""
    text = rules.render(config, family)
    if text is None:
        return []
    prefix = config.instance.upper() + "-"
    found = []
    for line in run_program([_TRANSLATOR[family], "-f", "/dev/stdin"], text).splitlines():
        unknown = _UNKNOWN.match(line)
        if unknown:
            found.append(Line(unknown[1], unknown[2].removeprefix(prefix), _by_hand(unknown[3])))
            continue
        rule = _RULE.match(line)
        if rule and rule[2].startswith(prefix):
            text = rule[3]
            for (_, chain), name in _FURTHER.items():
                text = re.sub(rf"\bjump {re.escape(prefix + chain)}$", f"jump {name}", text)
            found.append(Line(rule[1], rule[2].removeprefix(prefix), _for_any_family(text)))
    return found


def _by_hand(rule: str) -> str:
    known = _SOCKET.match(rule)
    if not known:
        raise AlgateError(f"this rule has no nft form: {rule}")
    return f'iifname "{known[1]}" fib daddr type local socket wildcard {{ 0, 1 }} return'


def _for_any_family(rule: str) -> str:
    """Return the rule in a form that is also valid in a table of family inet, without counters."""
    rule = rule.replace("counter ", "").replace("ct original protocol 6", "meta l4proto tcp")
    rule = re.sub(r"ct original (daddr|saddr) (\S+)", lambda m: f"ct original {_of(m[2])} {m[1]} {m[2]}", rule)
    return re.sub(r"\bip protocol (udp|tcp)\b", r"meta l4proto \1", rule)


def _of(address: str) -> str:
    return "ip6" if ":" in address else "ip"

"""Ports that an operator's own rules forward. A mapping there would never be reached, because those rules take
precedence; so it is refused, as far as the rules can be read. The precedence itself is the kernel's (chain `mapped` of
iptables/algate.nft), whatever is read here."""

from __future__ import annotations

import ipaddress
import itertools
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.model.requests import Transport
from gateway.observe.log import get_logger

REMEMBERED = 5.0
"""Seconds that what was read is believed: iptables-legacy changes its rules without a word."""

SLOW, SHARE = 0.5, 20
"""An answer that took longer than half a second to read is used for twenty times as long, whatever others change
meanwhile, because no worker is served while it is read."""

_DEADLINE = 2.0
_ENVIRONMENT = {**os.environ, "PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}
_ALL = (0, 65535)

log = get_logger()


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Ports that a rule leads elsewhere: lowest and highest. `transport`, `host`: "" if it says nothing of that."""

    transport: str
    host: str
    ports: tuple[int, int]

    def covers(self, transport: Transport, host: str, port: int) -> bool:
        """Whether packets to this port meet the rule."""
        if self.transport not in ("", transport) or not self.ports[0] <= port <= self.ports[1]:
            return False
        return not self.host or _is_in(host, self.host)


class ForeignForwardings:
    """The forwardings that are none of ours; `own`: the name of our table, and of our chains in any case."""

    def __init__(self, own: str) -> None:
        self._own = own.lower()
        self._found: list[Forwarding] = []
        self._until = 0.0
        self._rests = 0.0  # until when it is not read anew

    def has(self, transport: Transport, host: str, port: int) -> bool:
        """Whether an operator's rule forwards this port."""
        begun = time.monotonic()
        if max(self._until, self._rests) <= begun:
            self._found = [*self._read()]
            now = time.monotonic()
            self._until = now + REMEMBERED
            self._rests = now + SHARE * (now - begun) if now - begun > SLOW else 0.0
        return any(forwarding.covers(transport, host, port) for forwarding in self._found)

    def forget(self) -> None:
        """Another program has changed rules: they are read anew."""
        self._until = 0.0

    def _read(self) -> Iterator[Forwarding]:
        for command in ("iptables-save", "ip6tables-save"):
            yield from from_iptables(_output([command, "-t", "nat"]), self._own)
        listing = _output(["nft", "-j", "list", "ruleset"])
        try:
            yield from from_nft(msgspec.json.decode(listing or b"{}"), self._own)
        except (msgspec.DecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("broker.foreign_unread", error=str(error)[:200])


def from_iptables(listing: bytes, own: str) -> Iterator[Forwarding]:
    """The forwardings in what iptables-save prints. Rules for packets of certain sources or interfaces count too: what
    is forwarded for some is not to be mapped for others."""
    for line in listing.decode(errors="replace").splitlines():
        if not line.startswith("-A "):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        after = dict(itertools.pairwise(words))
        if after.get("-j") not in ("DNAT", "REDIRECT") or own in words[1].lower() or words[1] == "OUTPUT":
            continue
        if after.get("--sport") and "--dport" not in after:
            continue
        ports = after.get("--dport") or after.get("--dports") or ""
        negated = "!" in words and words[words.index("!") + 1] in ("--dport", "--dports")
        for low, high in [_ALL] if not ports or negated else _ranges_of(ports.split(",")):
            host = "" if _is_negated(words, "-d") else after.get("-d", "")
            yield Forwarding(after.get("-p", ""), host, (low, high))


def _is_negated(words: list[str], option: str) -> bool:
    return option in words and words[words.index(option) - 1] == "!"


def _ranges_of(texts: Iterable[str]) -> Iterator[tuple[int, int]]:
    for text in texts:
        low, _, high = text.partition(":")
        yield int(low or 0), int(high or low or 65535)


def from_nft(listing: dict[str, Any], own: str) -> Iterator[Forwarding]:
    """The forwardings in what `nft -j list ruleset` prints, but those that iptables made: it shows these itself."""
    items = listing.get("nftables", [])
    named = {
        (each["set"]["table"], each["set"]["name"]): each["set"].get("elem", []) for each in items if "set" in each
    }
    named |= {
        (each["map"]["table"], each["map"]["name"]): each["map"].get("elem", []) for each in items if "map" in each
    }
    for item in items:
        rule = item.get("rule")
        if rule is None or rule["table"].lower() == own or rule.get("chain", "").lower() in ("output", own):
            continue
        target = next(
            (expression[kind] for expression in rule["expr"] for kind in ("dnat", "redirect") if kind in expression),
            ...,
        )
        if target is ...:
            continue
        transport, ranges = "", [*_mapped_ports(target, rule["table"], named)]
        for expression in rule["expr"]:
            left, right = (expression.get("match", {}).get(side) for side in ("left", "right"))
            field = left.get("payload", {}) if isinstance(left, dict) else {}
            if field.get("field") == "dport" and expression["match"].get("op", "==") in ("==", "in"):
                transport = field["protocol"] if field["protocol"] in ("tcp", "udp") else transport
                ranges += _numbers(right, rule["table"], named)
        for ports in ranges or [_ALL]:
            yield Forwarding(transport, "", ports)


def _mapped_ports(target: Any, table: str, named: dict[tuple[str, str], Any]) -> Iterator[tuple[int, int]]:
    """Return the ports of a map from ports to addresses, if the target of a rule is such a map."""
    addr = target.get("addr") if isinstance(target, dict) else None
    if isinstance(addr, dict) and addr.get("map", {}).get("key", {}).get("payload", {}).get("field") == "dport":
        data = addr["map"]["data"]
        pairs = named.get((table, data.lstrip("@")), []) if isinstance(data, str) else data.get("set", [])
        for key, _ in pairs:
            yield from _numbers(key, table, named)


def _numbers(value: Any, table: str, named: dict[tuple[str, str], Any]) -> Iterator[tuple[int, int]]:
    match value:
        case int():
            yield value, value
        case str() if value.startswith("@"):
            yield from _numbers({"set": named.get((table, value[1:]), [])}, table, named)
        case {"range": [int(low), int(high)]}:
            yield low, high
        case {"set": list(several)}:
            for item in several:
                yield from _numbers(item, table, named)
        case {"elem": {"val": inner}}:
            yield from _numbers(inner, table, named)
        case _:
            yield _ALL  # what is not understood may be any


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except (ValueError, TypeError):
        return True


def _output(command: list[str]) -> bytes:
    """Return what a program prints; "" where the program is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, timeout=_DEADLINE, env=_ENVIRONMENT, check=False).stdout
    except subprocess.TimeoutExpired:
        log.warning("broker.foreign_unread", error=f"{command[0]} has not answered within {_DEADLINE:g} s")
        return b""
    except OSError:
        return b""

"""Finds the first rule that matches, among thousands, without evaluating each. Pure.

Each selector has a table from a value (an address, a name, a port, ...) to the set of rules that it satisfies. A set is
an integer with a bit for each rule, so the rules that match are the AND of a few integers, and the first of them is the
lowest bit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from alg.address import Address
from gateway.model.requests import CommandName
from gateway.policy.rules import WEEK, Prefix, Query, Rule, is_of_command

COMMANDS: tuple[CommandName, ...] = ("connect", "bind", "udp", "resolve", "transparent", "fxp", "map")


class _Prefixes:
    """Rules by address, with one dictionary for each mask that occurs. There are few masks."""

    def __init__(self, selectors: Sequence[Sequence[Prefix]]) -> None:
        self._tables: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        for i, prefixes in enumerate(selectors):
            for version, value, mask in prefixes:
                values = self._tables[version].setdefault(mask, {})
                values[value] = values.get(value, 0) | 1 << i

    def lookup(self, address: Address) -> int:
        found, number = 0, int(address)
        for mask, values in self._tables[address.version].items():
            found |= values.get(number & mask, 0)
        return found

    def lookup_within(self, address: Address, outer: Prefix) -> int:
        """Look up only rules whose prefix lies within `outer`, which contains the address."""
        found, number = 0, int(address)
        for mask, values in self._tables[address.version].items():
            if mask & outer.mask == outer.mask:
                found |= values.get(number & mask, 0)
        return found


class _Spans:
    """Rules by a number that has to lie in one of their spans. A rule without spans matches all numbers."""

    def __init__(self, selectors: Sequence[Sequence[tuple[int, int]]], size: int) -> None:
        """`selectors`: spans of each rule as (first, behind the last), of numbers below `size`."""
        edges: dict[int, list[tuple[int, bool]]] = {0: []}
        always = 0
        for i, spans in enumerate(selectors):
            if not spans:
                always |= 1 << i
            for first, end in _joined(spans):
                edges.setdefault(first, []).append((i, True))
                edges.setdefault(min(end, size), []).append((i, False))
        self._starts = sorted(edges)
        self._sets: list[int] = []
        current = always
        for start in self._starts:
            for i, begins in edges[start]:
                current = current | 1 << i if begins else current & ~(1 << i)
            self._sets.append(current)

    def lookup(self, number: int) -> int:
        return self._sets[bisect_right(self._starts, number) - 1]


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of the same numbers that neither overlap nor touch."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return joined


class RuleIndex:
    """The rules of a policy, indexed by their selectors."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.permits = _set(rule.permit for rule in rules)
        self.everywhere = _set(rule.everywhere for rule in rules)
        self.any_port = _set(rule.ports in ((), ((0, 65535),)) for rule in rules)
        self.by_prefix = _set(bool(rule.targets) for rule in rules)
        self.ident = _set(rule.ident for rule in rules)
        self._commands = {command: _set(is_of_command(rule, command) for rule in rules) for command in COMMANDS}
        self._sources = _Prefixes([rule.sources for rule in rules])
        self._any_source = _set(not rule.sources for rule in rules)
        self._targets = _Prefixes([rule.targets for rule in rules])
        self._names = _by_word([rule.names for rule in rules])
        self._suffixes = _by_word([rule.suffixes for rule in rules])
        self._ports = _Spans([[(low, high + 1) for low, high in rule.ports] for rule in rules], 65536)
        self._times = _Spans([rule.times for rule in rules], WEEK)
        self._users = _by_word([rule.users for rule in rules])
        self._any_user = _set(not rule.users for rule in rules)
        self._groups = _by_word([rule.groups for rule in rules])
        self._any_group = _set(not rule.groups for rule in rules)

    def apart_from_target(self, query: Query, *, any_user: bool = False, any_port: bool = False) -> int:
        """Return the rules whose selectors all match, `to` aside. With `any_user` the selectors of users are ignored,
        with `any_port` that of ports."""
        found = self._commands[query.command] & (self._any_source | self._sources.lookup(query.client))
        found &= self._times.lookup(query.minute)
        if not any_port:
            found &= self._ports.lookup(query.port)
        if any_user:
            return found
        if query.user is None:
            return found & self._any_user & self._any_group & ~self.ident
        groups = self._any_group
        for group in query.groups:
            groups |= self._groups.get(group, 0)
        return found & (self._any_user | self._users.get(query.user, 0)) & groups

    def named(self, name: str | None) -> int:
        """Return the rules whose `to` contains the name, literally or by a wildcard."""
        if name is None:
            return 0
        found = self._names.get(name, 0)
        if self._suffixes:
            at = name.find(".")
            while at >= 0:
                found |= self._suffixes.get(name[at:], 0)
                at = name.find(".", at + 1)
        return found

    def at(self, target: Address) -> int:
        """Return the rules whose `to` contains the address."""
        return self._targets.lookup(target)

    def naming(self, name: str | None, target: Address, protected: Prefix) -> int:
        """Return the rules that name this very target: by its exact name, or by a prefix that lies within the protected
        range."""
        if not protected.version:
            return 0
        exact = self._names.get(name, 0) if name is not None else 0
        return exact | self._targets.lookup_within(target, protected)

    def first(self, found: int) -> Rule | None:
        """Return the first rule of a set."""
        return self.rules[(found & -found).bit_length() - 1] if found else None

    def first_match(
        self, name: str | None, static: int, named: int, target: Address, protected: Prefix | None
    ) -> Rule | None:
        """Return the first rule that matches at `target`, which was requested as `name`. `static`: the result of
        `apart_from_target`; `named`: the result of `named`."""
        found = static & (self.everywhere | named | self.at(target))
        if protected is not None:
            found &= ~self.permits | self.naming(name, target, protected)
        return self.first(found)


def _set(members: Iterable[bool]) -> int:
    """Return the set of the positions at which there is True."""
    bits = "".join("1" if member else "0" for member in members)
    return int(bits[::-1], 2) if bits else 0


def _by_word(selectors: Sequence[Iterable[str]]) -> dict[str, int]:
    table: dict[str, int] = {}
    for i, words in enumerate(selectors):
        for word in words:
            table[word] = table.get(word, 0) | 1 << i
    return table

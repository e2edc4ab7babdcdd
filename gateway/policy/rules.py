"""Rules in the form in which they are matched, and the matching of one request with one rule. Pure.

`why_not` defines the meaning of a rule; `index.py` finds the same first match among thousands.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, get_args

import msgspec

from alg.address import Address
from gateway.model.requests import CommandName, LogLevel

_COMMANDS: frozenset[CommandName] = frozenset(get_args(CommandName))
DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
DAY = 24 * 60  # minutes
WEEK = 7 * DAY


class ShareLimit(msgspec.Struct, frozen=True):
    """What all flows of a rule share, or those of each client or user: `rate` in bytes a second for each direction,
    `quota` in bytes of both directions in `period` seconds. 0: no limit."""

    of: Literal["rule", "client", "user"]
    rate: float
    quota: int
    period: float


class Limits(msgspec.Struct, frozen=True):
    """The limits of a rule: sessions at a time, sessions of one client at a time, new sessions a second. 0: no
    limit."""

    sessions: int = 0
    per_client: int = 0
    rate: float = 0.0
    shares: tuple[ShareLimit, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """A decision on a request. `rule` names what decided, for the log: a rule's name or number, a line of the access
    file, or "default", "client", "none", "loopback", ... The rest is what the rule says: `rate` in bytes a second for
    each direction of a flow (None: no limit), `limits`, the upstreams `via` (tried one after the other) or `chain`
    (through all of them), `log` (the level of a line for this decision)."""

    permit: bool
    rule: str
    rate: float | None = None
    limits: Limits | None = None
    via: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    log: LogLevel = ""


class Prefix(NamedTuple):
    """Addresses that agree with `value` in the bits of `mask`. A mask of the access file may have gaps."""

    version: int
    value: int
    mask: int

    def contains(self, address: Address) -> bool:
        return address.version == self.version and int(address) & self.mask == self.value

    def within(self, other: Prefix) -> bool:
        """Whether all addresses of this prefix are also in the other one."""
        return (
            self.version == other.version
            and self.mask & other.mask == other.mask
            and self.value & other.mask == other.value
        )

    @classmethod
    def of(cls, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Prefix:
        return cls(network.version, int(network.network_address), int(network.netmask))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the configuration or a line of the access file. An empty selector matches everything."""

    decision: Decision
    place: str
    commands: frozenset[CommandName]
    sources: tuple[Prefix, ...]
    targets: tuple[Prefix, ...]
    names: frozenset[str]  # exactly these
    suffixes: frozenset[str]  # ".example.com": every name below it
    ports: tuple[tuple[int, int], ...]
    users: frozenset[str]
    groups: frozenset[str]
    times: tuple[tuple[int, int], ...]  # in minutes of the week, end excluded
    any_peer: bool
    ident: bool

    @property
    def permit(self) -> bool:
        return self.decision.permit

    @property
    def label(self) -> str:
        return self.decision.rule

    @property
    def everywhere(self) -> bool:
        """Whether the rule has no `to` at all."""
        return not (self.targets or self.names or self.suffixes)


class Query(NamedTuple):
    """A request in the form that rules use: `client` as a plain address, `name` canonical or None, `minute` of the
    week."""

    command: CommandName
    client: Address
    name: str | None
    port: int
    user: str | None
    groups: tuple[str, ...]
    minute: int


def minute_of_week(moment: datetime) -> int:
    return moment.weekday() * DAY + moment.hour * 60 + moment.minute


def why_not(rule: Rule, query: Query, target: Address, protected: Prefix | None) -> str | None:
    """Return why the rule does not match the request at `target`, or None if it does.

    `protected`: if only a rule that names the target may permit it, the range of such addresses.
    """
    reason = why_not_apart_from_target(rule, query)
    if reason is not None:
        return reason
    named = rule.everywhere or names_match(rule, query.name)
    if not named and not any(prefix.contains(target) for prefix in rule.targets):
        return f"to: neither {query.name} nor {target}" if query.name else f"to: not {target}"
    if protected is not None and rule.permit and not names_target(rule, query.name, target, protected):
        return f"to: does not name {target}, which only a rule that names it permits"
    return None


def why_not_apart_from_target(rule: Rule, query: Query) -> str | None:
    """Return why one of the selectors other than `to` does not match, or None if all do."""
    if not is_of_command(rule, query.command):
        return f"command: not {query.command}"
    if rule.sources and not any(prefix.contains(query.client) for prefix in rule.sources):
        return f"from: not {query.client}"
    if rule.ports and not any(low <= query.port <= high for low, high in rule.ports):
        return f"port: not {query.port}"
    if rule.users and query.user not in rule.users:
        return f"user: not {query.user}" if query.user else "user: the client has not said who it is"
    if rule.groups and not rule.groups.intersection(query.groups):
        return f"group: not {', '.join(query.groups)}" if query.groups else "group: the user is in none"
    if rule.ident and query.user is None:
        return "ident: the user is not confirmed"
    if rule.times and not any(start <= query.minute < end for start, end in rule.times):
        return "time: not now"
    return None


def is_of_command(rule: Rule, command: CommandName) -> bool:
    """Whether the rule is about this command. A rule about all commands permits no transfer between servers."""
    return command in rule.commands or (not rule.commands and not (command == "fxp" and rule.permit))


def names_match(rule: Rule, name: str | None) -> bool:
    """Whether `to` contains the name, literally or by a wildcard."""
    if name is None:
        return False
    return name in rule.names or any(name.endswith(suffix) for suffix in rule.suffixes)


def names_target(rule: Rule, name: str | None, target: Address, protected: Prefix) -> bool:
    """Whether `to` names this very target: by its exact name, or by a prefix that lies within the protected range."""
    if not protected.version:
        return False
    if name is not None and name in rule.names:
        return True
    return any(prefix.contains(target) and prefix.within(protected) for prefix in rule.targets)


# --- one rule, another rule -----------------------------------------------------------------------------------------


def covers(first: Rule, later: Rule, *, fxp: bool = True) -> bool:
    """Whether every request that `later` could decide is decided by `first`, so that `later` never decides.

    A True is certain; that several rules together cover one is not found. Where both permit, `later` must have no `to`,
    because naming a target permits what a rule for all targets does not (protected addresses). `fxp`: whether any rule
    is about transfers between servers, which no rule about all commands permits.
    """
    commands = later.commands or (_COMMANDS if fxp and not later.permit else _COMMANDS - {"fxp"})
    if not all(is_of_command(first, command) for command in commands):
        return False
    if first.permit and later.permit and not later.everywhere and not _same_targets(first, later):
        return False
    if later.any_peer and not first.any_peer:
        return False
    return (
        _all_within(first.sources, later.sources)
        and (first.everywhere or (not later.everywhere and _targets_within(first, later)))
        and _spans_within(first.ports, later.ports)
        and _spans_within(first.times, later.times)
        and (not first.users or (bool(later.users) and later.users <= first.users))
        and (not first.groups or (bool(later.groups) and later.groups <= first.groups))
        and (not first.ident or later.ident or bool(later.users))
    )


def _same_targets(first: Rule, later: Rule) -> bool:
    return (first.targets, first.names, first.suffixes) == (later.targets, later.names, later.suffixes)


def _all_within(first: tuple[Prefix, ...], later: tuple[Prefix, ...]) -> bool:
    if not first:
        return True
    return bool(later) and all(any(inner.within(outer) for outer in first) for inner in later)


def _targets_within(first: Rule, later: Rule) -> bool:
    return (
        all(any(inner.within(outer) for outer in first.targets) for inner in later.targets)
        and all(names_match(first, name) for name in later.names)
        and all(any(suffix.endswith(outer) for outer in first.suffixes) for suffix in later.suffixes)
    )


def _spans_within(first: tuple[tuple[int, int], ...], later: tuple[tuple[int, int], ...]) -> bool:
    if not first:
        return True
    return bool(later) and all(any(low <= start and end <= high for low, high in first) for start, end in later)

"""A rule, ready to be matched, and how one request is held against one rule. Pure.

`why_not` is the meaning of a rule in full; `policy_index` finds the same first match among thousands.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from alg.address import Address, canonical
from gateway.config.schema import Config
from gateway.config.schema_rules import LogLevel, RuleSection
from gateway.model.hosts import canonical_name
from gateway.model.requests import CommandName

SHARED = (
    "bandwidth_per_rule", "bandwidth_per_client", "bandwidth_per_user",
    "quota_per_rule", "quota_per_client", "quota_per_user",
)  # fmt: skip
LIMITS = ("max_sessions", "max_sessions_per_client", "max_session_rate", "bandwidth", *SHARED)
_TCP = frozenset({"connect", "bind", "transparent"})
_LONGEST_PERIOD = 366 * 86400  # seconds
DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
DAY = 24 * 60  # minutes
WEEK = 7 * DAY


class RuleError(ValueError):
    """A rule that makes no sense; `key` is the path below the rule, as "to[1]"."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class ShareLimit(msgspec.Struct, frozen=True):
    """What all flows of a rule share, or those of each client or user: `rate` in bytes a second and direction, `quota`
    in bytes of both directions in `period` seconds. 0: no limit."""

    of: Literal["rule", "client", "user"]
    rate: float
    quota: int
    period: float


class Limits(msgspec.Struct, frozen=True):
    """What a rule allows at most: sessions at a time, of one client, and new ones a second. 0: no limit."""

    sessions: int = 0
    per_client: int = 0
    rate: float = 0.0
    shares: tuple[ShareLimit, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """`rule` names what decided: a rule's name or number, a line of the access file, or "default", "client", "none",
    "loopback", ..., for the log. What else the rule says: `rate` in bytes a second for each direction of a flow
    (None: as fast as it goes), `limits`, the upstreams `via` (one after the other is tried) or `chain` (through all),
    `log` (the level of a line on this decision)."""

    permit: bool
    rule: str
    rate: float | None = None
    limits: Limits | None = None
    via: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    log: LogLevel = ""


class Prefix(NamedTuple):
    """Addresses that agree with `value` in the bits of `mask`; a mask of the access file may have gaps."""

    version: int
    value: int
    mask: int

    def contains(self, address: Address) -> bool:
        return address.version == self.version and int(address) & self.mask == self.value

    def within(self, other: Prefix) -> bool:
        """Whether all addresses of this one are also of the other one."""
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
    """A rule of the configuration or a line of the access file. An empty selector matches all."""

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
        """Whether it has no `to` at all."""
        return not (self.targets or self.names or self.suffixes)


class Query(NamedTuple):
    """A request as rules see it: `client` in its plain form, `name` canonical or None, `minute` of the week."""

    command: CommandName
    client: Address
    name: str | None
    port: int
    user: str | None
    groups: tuple[str, ...]
    minute: int


def minute_of_week(moment: datetime) -> int:
    return moment.weekday() * DAY + moment.hour * 60 + moment.minute


def compile_rule(section: RuleSection, label: str, place: str) -> Rule:
    """The rule of a section. Raises RuleError."""
    names: set[str] = set()
    suffixes: set[str] = set()
    targets: list[Prefix] = []
    for i, text in enumerate(section.to):
        with _At(f"to[{i}]"):
            if text.startswith("*."):
                suffixes.add("." + canonical_name(text[2:]))
            elif _looks_like_address(text):
                targets.append(parse_prefix(text))
            else:
                names.add(canonical_name(text))
    sources: list[Prefix] = []
    for i, text in enumerate(section.from_):
        with _At(f"from[{i}]"):
            sources.append(parse_prefix(text))
    ports: list[tuple[int, int]] = []
    for i, port in enumerate(section.port):
        with _At(f"port[{i}]"):
            ports.append(_ports(port))
    times: list[tuple[int, int]] = []
    texts = [section.time] if isinstance(section.time, str) else section.time
    for i, text in enumerate(texts):
        with _At("time" if isinstance(section.time, str) else f"time[{i}]"):
            times += parse_time(text)
    via = (section.via,) if isinstance(section.via, str) else section.via
    _check(section, via, everywhere=not section.to)
    limits = Limits(
        section.max_sessions, section.max_sessions_per_client, section.max_session_rate, tuple(_shares(section))
    )
    decision = Decision(
        section.action == "permit",
        label,
        rate=float(section.bandwidth) or None,
        limits=limits if limits != Limits() else None,
        via=via,
        chain=section.chain,
        log=section.log,
    )
    return Rule(
        decision, place, frozenset(section.command), tuple(sources), tuple(targets), frozenset(names),
        frozenset(suffixes), tuple(ports), frozenset(section.user), frozenset(section.group), tuple(times),
        section.any_peer, section.ident,
    )  # fmt: skip


def compile_rules(config: Config) -> tuple[list[Rule], list[Rule]]:
    """The rules of a configuration, and those of its access file. Raises RuleError with the path from the top."""
    rules: list[Rule] = []
    lines = config.loaded.rule_lines
    for i, section in enumerate(config.rule):
        place = f"line {lines[i]}" if i < len(lines) else ""
        try:
            rules.append(compile_rule(section, section.name or f"rule[{i}]", place))
        except RuleError as error:
            raise RuleError(f"rule[{i}].{error.key}", str(error)) from None
    access: list[Rule] = []
    for section, place in zip(config.loaded.access, config.loaded.access_places, strict=True):
        access.append(compile_rule(section, section.name, place))
    return rules, access


def _shares(section: RuleSection) -> Iterator[ShareLimit]:
    for of, rate, quota in (
        ("rule", section.bandwidth_per_rule, section.quota_per_rule),
        ("client", section.bandwidth_per_client, section.quota_per_client),
        ("user", section.bandwidth_per_user, section.quota_per_user),
    ):
        if rate or quota:
            yield ShareLimit(of, float(rate), quota, section.quota_period)  # type: ignore[arg-type]


def _check(section: RuleSection, via: Sequence[str], *, everywhere: bool) -> None:
    for key in LIMITS:
        value = getattr(section, key)
        if not value >= 0:
            raise RuleError(key, f"{value:g} is negative")
        if value and section.action == "deny":
            raise RuleError(key, "has no meaning for a rule that denies")
        if value and section.command and key in SHARED and not _TCP.intersection(section.command):
            raise RuleError(key, f"is for TCP, and the rule for {', '.join(section.command)}")
    if not 1 <= section.quota_period <= _LONGEST_PERIOD:
        raise RuleError("quota_period", f"{section.quota_period:g} is not between 1 second and a year")
    if via and section.chain:
        raise RuleError("chain", "a rule has either via or chain")
    if section.action == "deny" and (via or section.chain or section.any_peer):
        raise RuleError("action", "a rule that denies has no via, chain or any_peer")
    if section.action == "permit" and "fxp" in section.command:
        if not section.from_:
            raise RuleError("from", "has to name the clients, where fxp is permitted")
        if not section.to or not all(map(_looks_like_address, section.to)):
            raise RuleError("to", "has to name both servers by address, where fxp is permitted")
        if section.group:
            raise RuleError("group", "is not known where fxp is asked for")
    if section.any_peer and not everywhere:
        raise RuleError("any_peer", "says that any peer may come, and `to` says which")
    if section.any_peer and section.command and "bind" not in section.command:
        raise RuleError("any_peer", "is of the command bind, which this rule does not match")


class _At:
    """Errors within are errors of a key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise RuleError(self._key, str(error)) from None


def _looks_like_address(text: str) -> bool:
    return ":" in text or "/" in text or re.fullmatch(r"[0-9.]+", text, re.ASCII) is not None


def parse_prefix(text: str) -> Prefix:
    """ "192.0.2.1", "192.0.2.0/24", "2001:db8::/32"; "192.0.2.0/255.255.0.255" too. ValueError says what is wrong."""
    host, slash, length = text.partition("/")
    if slash and "." in length and ":" not in host:
        value, mask = int(ipaddress.IPv4Address(host)), int(ipaddress.IPv4Address(length))
        if value & ~mask:
            raise ValueError(f"{text!r} has bits set that the mask leaves out")
        return Prefix(4, value, mask)
    network = ipaddress.ip_network(text)
    address = network.network_address
    plain = canonical(address)
    if plain.version != address.version and network.prefixlen >= 96:  # ::ffff:192.0.2.0/120
        return Prefix.of(ipaddress.ip_network((int(plain), network.prefixlen - 96)))
    return Prefix.of(network)


def _ports(port: int | str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(port), re.ASCII)
    if not found:
        raise ValueError(f"{port!r} is not a port or LOWEST-HIGHEST")
    low, high = int(found[1]), int(found[2] or found[1])
    if not low <= high <= 65535:
        raise ValueError(f"{port!r} is not a range of ports (0 to 65535)")
    return low, high


def parse_time(text: str) -> list[tuple[int, int]]:
    """ "Mo-Fr 08:00-18:00", "Sa,Su", "22:00-06:00" as spans of the week in minutes, end excluded, none over its end.

    A span over midnight belongs to the day on which it begins. ValueError says what is wrong.
    """
    found = re.fullmatch(r"\s*([A-Za-z][A-Za-z,-]*)?\s*(?:(\d\d):(\d\d)-(\d\d):(\d\d))?\s*", text)
    if not found or not text.strip():
        raise ValueError(f'{text!r} is not of the form "Mo-Fr 08:00-18:00"')
    start, end = 0, DAY
    if found[2]:
        start, end = (int(found[i]) * 60 + int(found[i + 1]) for i in (2, 4))
        if int(found[3]) > 59 or int(found[5]) > 59 or start >= DAY or end > DAY or start == end:
            raise ValueError(f"{text!r} is not a span of time (00:00 to 24:00)")
        if end < start:
            end += DAY
    spans: list[tuple[int, int]] = []
    for day in sorted(_days(found[1])) if found[1] else range(7):
        first, last = day * DAY + start, day * DAY + end
        spans.append((first, min(last, WEEK)))
        if last > WEEK:
            spans.append((0, last - WEEK))
    return spans


def _days(text: str) -> set[int]:
    known = {name.lower(): i for i, name in enumerate(DAYS)}
    days: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in known or (dash and last not in known):
            raise ValueError(f"{part!r} is not a day or a range of days ({', '.join(DAYS)})")
        day = known[first]
        days.add(day)
        while dash and day != known[last]:
            day = (day + 1) % 7
            days.add(day)
    return days


# --- one rule, one request ------------------------------------------------------------------------------------------


def why_not(rule: Rule, query: Query, target: Address, protected: Prefix | None) -> str | None:
    """Why the rule does not match the request at `target`, or None if it does.

    `protected`: the range of addresses that only a rule which names them permits, if `target` is of one.
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
    """Why one of the selectors other than `to` does not match; None if all do."""
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
    """Whether the rule is about this command. What is said of all commands permits no transfer between servers."""
    return command in rule.commands or (not rule.commands and not (command == "fxp" and rule.permit))


def names_match(rule: Rule, name: str | None) -> bool:
    """Whether `to` holds the name, by itself or by a wildcard."""
    if name is None:
        return False
    return name in rule.names or any(name.endswith(suffix) for suffix in rule.suffixes)


def names_target(rule: Rule, name: str | None, target: Address, protected: Prefix) -> bool:
    """Whether `to` names this very target: its exact name, or a prefix that lies within the protected range."""
    if not protected.version:
        return False
    if name is not None and name in rule.names:
        return True
    return any(prefix.contains(target) and prefix.within(protected) for prefix in rule.targets)

"""Compiles the rules of a configuration from text to the form that the policy matches."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from alg.address import Address, canonical
from gateway.config.schema import Config
from gateway.config.schema_rules import RuleSection
from gateway.model.hosts import configured_name
from gateway.policy.decide import Policy, nobodys
from gateway.policy.rules import DAY, DAYS, WEEK, Decision, Limits, Prefix, Rule, ShareLimit

SHARED = (
    "bandwidth_per_rule", "bandwidth_per_client", "bandwidth_per_user",
    "quota_per_rule", "quota_per_client", "quota_per_user",
)  # fmt: skip
LIMITS = ("max_sessions", "max_sessions_per_client", "max_session_rate", "bandwidth", *SHARED)
_TCP = frozenset({"connect", "bind", "transparent"})
_LONGEST_PERIOD = 366 * 86400  # seconds


class RuleError(ValueError):
    """A rule that makes no sense. `key` is the path below the rule, such as "to[1]"."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def policy_of(
    config: Config,
    now: Callable[[], datetime] | None = None,
    is_own: Callable[[Address], bool] = nobodys,
) -> Policy:
    """Return the policy of a configuration. `now` and `is_own` as for Policy. Raises RuleError."""
    rules, access = compile_rules(config)
    return Policy(config.inside_networks, rules, access, now, is_own, config.nat64_prefixes)


def compile_rule(section: RuleSection, label: str, place: str) -> Rule:
    """Compile the rule of a section. Raises RuleError."""
    names: set[str] = set()
    suffixes: set[str] = set()
    targets: list[Prefix] = []
    for i, text in enumerate(section.to):
        with _At(f"to[{i}]"):
            if "://" in text:
                host = text.partition("://")[2].partition("/")[0]
                raise ValueError(f"{text!r} is a URL: write its host alone ({host}), and the port as `port`")
            if text.startswith("*."):
                suffixes.add("." + configured_name(text[2:]))
            elif _looks_like_address(text):
                targets.append(parse_prefix(text))
            else:
                names.add(configured_name(text))
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
    """Compile the rules of a configuration and those of its access file. Raises RuleError with the path from the
    top."""
    rules: list[Rule] = []
    for i, section in enumerate(config.rule):
        place = config.loaded.places.get(f"rule[{i}]", "")
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
    if "map" in section.command:
        _check_mapping(section, via)
    if section.any_peer and not everywhere:
        raise RuleError("any_peer", "says that any peer may come, and `to` says which")
    if section.any_peer and section.command and "bind" not in section.command:
        raise RuleError("any_peer", "has a meaning for the command bind only, which this rule does not match")


def _check_mapping(section: RuleSection, via: Sequence[str]) -> None:
    """Refuse keys that have no meaning in a rule for mappings: a client that asks for one is not authenticated, and
    nothing is dialled or relayed."""
    if section.to:
        raise RuleError("to", "names servers, and a mapping has none (write a rule for map alone)")
    for key, named in (("user", section.user), ("group", section.group), ("ident", section.ident)):
        if named:
            raise RuleError(key, "is not known where a mapping is asked for (write a rule for map alone)")
    for key, names in (("via", via), ("chain", section.chain)):
        if names:
            raise RuleError(
                key, "is for connections, and a mapping goes through no upstream (write a rule for map alone)"
            )
    if section.bandwidth and section.command == ("map",):
        raise RuleError("bandwidth", "is for flows of this gateway, and what comes by a mapping stays in the kernel")


class _At:
    """A context manager: errors raised within it become errors of a key."""

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
    """Parse "192.0.2.1", "192.0.2.0/24", "2001:db8::/32" or "192.0.2.0/255.255.0.255". Raises ValueError with what is
    wrong."""
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
    """Parse "Mo-Fr 08:00-18:00", "Sa,Su" or "22:00-06:00" into spans of the week in minutes. The end of a span is
    excluded, and no span goes beyond the end of the week.

    A span over midnight belongs to the day on which it begins. Raises ValueError with what is wrong.
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

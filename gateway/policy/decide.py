"""Decides which client may reach what. This is the only room that permits or denies a client's request. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from alg.address import Address, Endpoint, canonical
from gateway.model.hosts import name_of, seen_through
from gateway.model.requests import ConnectRequest, Network
from gateway.policy.index import RuleIndex
from gateway.policy.rules import (
    Decision,
    Prefix,
    Query,
    Rule,
    minute_of_week,
    why_not,
    why_not_apart_from_target,
)

__all__ = ["Decision", "Explanation", "Judgement", "Policy"]

CLIENTS = 4096  # whose decisions are remembered
# Ranges by their first bits: 0.0.0.0/8 (RFC 1122 3.2.1.3: never a destination, and Linux takes it for itself) is what
# begins with a byte of 0.
_BROADCAST = 0xFFFFFFFF
_LINK_LOCAL4, _MULTICAST4 = 0xA9FE, 0xE  # of 16 bits, of 4
_LINK_LOCAL6, _MULTICAST6 = 0xFE80 >> 6, 0xFF  # of 10 bits, of 8
_LOOPBACK = (Prefix.of(ipaddress.ip_network("127.0.0.0/8")), Prefix.of(ipaddress.ip_network("::1/128")))
_LINK_LOCAL = (Prefix.of(ipaddress.ip_network("169.254.0.0/16")), Prefix.of(ipaddress.ip_network("fe80::/10")))
_NEVER = Prefix(0, 0, 0)  # of no version: no rule can name what is in it


def nobodys(_address: Address) -> bool:
    """The default of `is_own`: no address belongs to this host."""
    return False


class Explanation(NamedTuple):
    """How a decision came about: the rules before the deciding one, each as (label, place, why it does not match)."""

    decision: Decision
    place: str
    passed: list[tuple[str, str, str]]


class Policy:
    """The rules of one configuration. Without any rule, inside clients may reach the outside; without inside networks,
    loopback clients may. Addresses of the gateway's own network are no destination unless a rule names them."""

    def __init__(
        self,
        inside: Sequence[Network],
        rules: Sequence[Rule] = (),
        access: Sequence[Rule] = (),
        now: Callable[[], datetime] | None = None,
        is_own: Callable[[Address], bool] = nobodys,
        nat64: Sequence[ipaddress.IPv6Network] = (),
    ) -> None:
        """`rules` are asked first and apply to all commands; then `access` (rules of the access file), which apply to
        the commands of SOCKS. `now` returns the local time; without it, rules with a time match as at the start of the
        week. `is_own`: whether packets to an address end at this host. `nat64`: prefixes that embed IPv4 addresses."""
        self._inside = tuple(inside)
        self._inside_prefixes = tuple(Prefix.of(network) for network in inside)
        self._index = RuleIndex([*rules, *access])
        self._has_rules = bool(rules)
        self._has_access = bool(access)
        self._now = now
        self._is_own = is_own
        self._nat64 = tuple(nat64)
        self._clients: dict[str, bool] = {}  # whether they may ask where there are no rules, as far as it was asked

    def judge(self, request: ConnectRequest) -> Judgement:
        """Return a judgement of a request. All selectors but `to` are evaluated now, once."""
        return Judgement(self, request)

    def decide_association(self, request: ConnectRequest) -> Decision:
        """Decide whether the client of a UDP ASSOCIATE may send any datagram at all. The targets are not known yet;
        `judge` is called for each of them. The request's host and port are no target (RFC 1928 section 4) and are
        ignored."""
        if not self._governed(request):
            return self._default(request)
        index = self._index
        found = index.apart_from_target(self._query(request), any_port=True)
        never = index.first(found & index.everywhere & index.any_port & ~index.permits)  # nothing behind it is asked
        rule = index.first(found & index.permits)
        if rule is None or (never is not None and index.rules.index(never) < index.rules.index(rule)):
            return never.decision if never is not None else Decision(False, "none")
        return rule.decision

    def decide_mapping(self, request: ConnectRequest) -> Decision:
        """Decide whether a client may have a public port that leads to `request.port` of its own (the command "map").
        A mapping has no server, so a rule with `to` says nothing about it; lines of the access file neither."""
        if not self._governed(request):
            return self._default(request)
        rule = self._index.first(self._index.apart_from_target(self._query(request)) & self._index.everywhere)
        return rule.decision if rule is not None else Decision(False, "none")

    def permits_mapping(self, target: Endpoint, user: str | None) -> bool:
        """Whether a client may have a public port that leads to `target`, a socket of its own."""
        return self.decide_mapping(ConnectRequest("map", target, target.host, target.port, user)).permit

    def permits_transfer(self, client: Endpoint, user: str | None, server: Endpoint, other: Endpoint) -> bool:
        """Whether an FTP client may let `server`, of its control connection, exchange files with `other` (FXP). True
        only if one rule with the command "fxp" names both servers."""
        decisions = [
            self.judge(ConnectRequest("fxp", client, end.host, end.port, user)).at(end.ip) for end in (server, other)
        ]
        return decisions[0].permit and decisions[0] is decisions[1]

    def demands_ident(self, request: ConnectRequest) -> bool:
        """Whether the client's ident server (RFC 1413) has to be asked for the user before this request can be decided:
        a rule that may decide it has `ident = true`."""
        index = self._index
        if not index.ident or not self._governed(request):
            return False
        query = self._query(request)
        found = index.apart_from_target(query, any_user=True)
        found &= index.everywhere | index.by_prefix | index.named(query.name)
        decides = index.apart_from_target(query) & index.everywhere
        before = ((decides & -decides) - 1) if decides else -1  # the rules that are asked before that one
        return bool(found & index.ident & before)

    def explain(self, request: ConnectRequest, address: Address | None) -> Explanation:
        """Return the decision of `Judgement.at`, or without an address of `Judgement.client`, with the reasons.
        Slow."""
        judgement = self.judge(request)
        if request.command == "map":
            address = None
            decision = self.decide_mapping(request)
        else:
            decision = judgement.client if address is None else judgement.at(address)
        targets = () if address is None else seen_through(address, self._nat64)
        query = judgement.query
        if query is None:
            return Explanation(decision, "", [])
        passed: list[tuple[str, str, str]] = []
        for rule in self._index.rules:
            if rule.decision is decision:
                return Explanation(decision, rule.place, passed)
            if address is None:
                without = "a mapping has no server" if request.command == "map" else "the name has none here"
                why = why_not_apart_from_target(rule, query) or f"to: holds addresses, and {without}"
            else:
                reasons = [why_not(rule, query, target, self._protection(target)[1]) for target in targets]
                why = next((reason for reason in reasons if reason), "")
            passed.append((rule.label, rule.place, why))
        return Explanation(decision, "", passed)

    def _governed(self, request: ConnectRequest) -> bool:
        """Whether there are rules for this kind of request."""
        return self._has_rules or (self._has_access and request.command not in ("transparent", "map"))

    def _query(self, request: ConnectRequest) -> Query:
        return Query(
            request.command,
            canonical(request.client.host),
            name_of(request.host),
            request.port,
            request.user,
            request.groups if request.user is not None else (),
            minute_of_week(self._now()) if self._now is not None else 0,
        )

    def _protection(self, target: Address) -> tuple[str, Prefix | None]:
        """If only a rule that names `target` may permit it, return the kind of the address and the range of that kind;
        otherwise "" and None."""
        number = int(target)  # its properties would be asked one network after another
        if target.version == 4:
            first = number >> 24
            if first == 127:
                return "loopback", _LOOPBACK[0]
            if first == 0:
                return "unspecified", _NEVER
            if number >> 16 == _LINK_LOCAL4:
                return "link-local", _LINK_LOCAL[0]
            if first >> 4 == _MULTICAST4 or number == _BROADCAST:
                return "multicast", _NEVER
        elif number <= 1:
            return ("loopback", _LOOPBACK[1]) if number else ("unspecified", _NEVER)
        elif number >> 118 == _LINK_LOCAL6:
            return "link-local", _LINK_LOCAL[1]
        elif number >> 120 == _MULTICAST6:
            return "multicast", _NEVER
        if self._is_own(target):
            bits = target.max_prefixlen
            return "own", Prefix(target.version, int(target), (1 << bits) - 1)
        for prefix in self._inside_prefixes:
            if prefix.contains(target):
                return "inside", prefix
        return "", None

    def _default(self, request: ConnectRequest) -> Decision:
        if request.command == "fxp":
            return Decision(False, "none")
        permit = self._clients.get(request.client.host)
        if permit is None:
            client = canonical(request.client.host)
            permit = any(client in network for network in self._inside) if self._inside else client.is_loopback
            if len(self._clients) >= CLIENTS:
                self._clients.clear()
            self._clients[request.client.host] = permit
        return Decision(permit, "default" if permit else "client")


class Judgement:
    """What the rules say about one request.

    `client`: whether this client may ask at all. It is evaluated before a name is resolved, so that strangers cause no
    lookups; a permission only means that a rule may permit the request at some address of the name. `query`: the
    request in the form that rules use; None where no rules apply.
    """

    __slots__ = ("_index", "_named", "_policy", "_rule", "_static", "client", "query")

    def __init__(self, policy: Policy, request: ConnectRequest) -> None:
        self._policy = policy
        self._index = index = policy._index
        self._rule: Rule | None = None
        self.query: Query | None
        if not policy._governed(request):
            self.query = None
            self.client = policy._default(request)
            return
        self.query = query = policy._query(request)
        self._static = static = index.apart_from_target(query)
        self._named = named = index.named(query.name)
        # The first rule that matches whatever the address is, or permits some addresses.
        self._rule = index.first(static & (index.everywhere | named | (index.by_prefix & index.permits)))
        self.client = self._rule.decision if self._rule is not None else Decision(False, "none")

    @property
    def by_name(self) -> Decision | None:
        """Decide by the name alone, for an upstream that resolves it. None if the decision depends on the address, or
        if no rule sends the request to an upstream."""
        rule, query = self._rule, self.query
        if rule is None or query is None or query.name is None or not (rule.decision.via or rule.decision.chain):
            return None
        index = self._index
        definite = index.everywhere | self._named
        return rule.decision if index.first(definite & 1 << index.rules.index(rule)) else None

    @property
    def permits_any_peer(self) -> bool:
        """Whether a BIND that expects no particular peer (address 0) may accept connections of any host: only if a rule
        says so. The address that connects must still be permitted."""
        if self.query is None:
            return False
        rule = self._index.first(self._static & self._index.everywhere)
        return rule is not None and rule.permit and rule.any_peer

    def at(self, address: Address) -> Decision:
        """Decide whether the request may be carried out at `address`, which its name resolved to or which it named.

        The caller dials exactly this address. An address that embeds others is permitted only if all of them are.
        """
        policy, query = self._policy, self.query
        if query is None:
            if self.client.permit:
                for target in seen_through(address, policy._nat64):
                    kind, _ = policy._protection(target)
                    if kind:
                        return Decision(False, kind)
            return self.client
        first: Decision | None = None
        for target in seen_through(address, policy._nat64):
            kind, protected = policy._protection(target)
            rule = self._index.first_match(query.name, self._static, self._named, target, protected)
            decision = rule.decision if rule is not None else Decision(False, kind or "none")
            if not decision.permit:
                return decision
            first = first or decision
        assert first is not None
        return first


class PolicyInForce:
    """Holds the policy that is in force. What asks for decisions holds this, and reads `current` for each request: a
    reload puts another policy there, which then also applies to what has begun before."""

    __slots__ = ("current",)

    def __init__(self, current: Policy) -> None:
        self.current = current

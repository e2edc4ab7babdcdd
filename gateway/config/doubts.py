"""Finds settings that are valid but can hardly be meant. Each doubt begins with the path of the key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from alg.address import Endpoint
from alg.api import Mode
from alg.registry import BrokenModule, kinds_of, modules
from gateway.config.check import parse_host_port
from gateway.config.rules import compile_rules
from gateway.config.schema import Config, parse_endpoint
from gateway.model.requests import transports_of
from gateway.policy.rules import Rule, covers, is_of_command

_MOST_EARLIER = 256
_IDENTIFYING = frozenset({"ident", "password", "gssapi"})


def doubts(config: Config) -> Iterator[str]:
    """Return each doubt about a valid configuration as "KEY: what is odd, and what to do"."""
    for i, network in enumerate(config.inside_networks):
        if network.prefixlen == 0:
            yield f"network.inside[{i}]: {network} is everybody: all hosts that reach this gateway may use it"
    low, high = config.pinhole_ports
    listening = dict(config.socks_listeners)
    if config.console.listen:
        listening["console.listen"] = parse_endpoint(config.console.listen)
    for key, endpoint in listening.items():
        if low <= endpoint.port <= high:
            yield f"{key}: its port is one of pinhole.ports ({config.pinhole.ports}), which are for the world outside"
    proves = config.socks.tls.client_ca or _IDENTIFYING.intersection(config.socks.auth)
    if config.socks_listeners and not proves:
        for i, section in enumerate(config.rule):
            if (section.user or section.group) and not section.ident:  # with `ident` the client's host is asked
                key = "user" if section.user else "group"
                yield f"rule[{i}].{key}: never matches: by no method of socks.auth does a client prove who it is"
    yield from _network(config)
    yield from _ways_in(config, listening)
    yield from _published_unread(config)
    for name, module in config.alg.items():
        if module.mode is not Mode.OFF and not module.ports:
            yield f"alg.{name}.ports: is empty, so the module reads nothing"
    yield from _accounts(config)
    if config.pinhole.per_client > high - low + 1:
        yield f"pinhole.per_client: {config.pinhole.per_client} are more than pinhole.ports has; one client takes all"
    rules, _ = compile_rules(config)
    for i, rule in enumerate(rules):
        families = {prefix.version for prefix in rule.sources}, {prefix.version for prefix in rule.targets}
        if rule.sources and rule.targets and not (rule.names or rule.suffixes) and not set.intersection(*families):
            yield f"rule[{i}].to: never matches: none of its addresses is of the family of those of `from`"
    if config.portmap.protocols and config.rule and not any(map(_lets_map, rules)):
        yield "portmap.protocols: no rule permits `map`, so no client gets a public port (docs/rules.md)"
    yield from _past_upstreams(config, rules)
    yield from _shadowed(rules)


def _past_upstreams(config: Config, rules: list[Rule]) -> Iterator[str]:
    """Find rules that lead connections through an upstream beside which their clients open further ones."""
    ports = _ports_of_one_connection(config) if config.transparent_enabled else ()
    for i, rule in enumerate(rules):
        through = rule.decision.via or rule.decision.chain
        here = [port for port in ports if not rule.ports or any(low <= port <= high for low, high in rule.ports)]
        if rule.permit and through and here and is_of_command(rule, "transparent"):
            key = "via" if rule.decision.via else "chain"
            yield (
                f"rule[{i}].{key}: what unconfigured clients open themselves beside a connection to port "
                f"{', '.join(map(str, here))} (passive mode) goes past the upstream (docs/how-to/upstreams.md)"
            )


def _ports_of_one_connection(config: Config) -> tuple[int, ...]:
    """Return the ports of modules that read flows through upstreams: all that they open is single connections."""
    try:
        kinds = modules()
    except BrokenModule:  # `algate check` says so
        return ()
    read = [name for name, kind in kinds.items() if kinds_of(kind) == {"once"}]
    sections = [config.alg[name] for name in read if name in config.alg]
    return tuple(sorted({port for section in sections if section.mode is not Mode.OFF for port in section.ports}))


def _lets_map(rule: Rule) -> bool:
    """Whether a rule permits some client a public port."""
    return rule.permit and rule.everywhere and is_of_command(rule, "map") and not (rule.users or rule.groups)


def _network(config: Config) -> Iterator[str]:
    names = config.network.inside_interfaces
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"network.inside_interfaces[{i}]: {name} is there twice"
    if config.network.outside != "auto":
        outside = ipaddress.ip_address(config.network.outside)
        for i, network in enumerate(config.inside_networks):
            if outside in network and network.prefixlen:
                yield f"network.outside: {outside} is in network.inside[{i}]: servers outside may not find this router"
    for i, upstream in enumerate(config.upstream):
        host, port = parse_host_port(upstream.address)
        for place, there in config.socks_listeners.items():
            here = host in (there.host, "localhost") or (there.ip.is_unspecified and host in ("127.0.0.1", "::1"))
            if here and port == there.port:
                yield f"upstream[{i}].address: {upstream.address} is this gateway itself ({place.partition('[')[0]})"


def _ways_in(config: Config, listening: Mapping[str, Endpoint]) -> Iterator[str]:
    """Find servers inside whose public endpoint is one of our own listeners', and those that have to be published."""
    ways: list[tuple[str, str, str]]
    ways = [(f"publish[{i}]", entry.outside, entry.protocol) for i, entry in enumerate(config.publish)]
    ways += [(f"forward[{i}]", entry.outside, entry.protocol) for i, entry in enumerate(config.forward)]
    for key, text, protocol in ways:
        outside = parse_endpoint(text)
        for place, there in listening.items():
            here = there.version == outside.version and (there.host == outside.host or there.ip.is_unspecified)
            if here and there.port == outside.port and "tcp" in protocol:
                yield f"{key}.outside: {outside} is a port of {place} too, which is not reached there any more"
    for i, entry in enumerate(config.forward):
        for transport in transports_of(entry.protocol):
            module = config.module_of(parse_endpoint(entry.inside).port, transport)
            if module is not None:
                yield (
                    f"forward[{i}].inside: its port is one of alg.{module[0]}.ports, and nobody reads what is "
                    "forwarded; [[publish]] is for such servers"
                )
                break


def _published_unread(config: Config) -> Iterator[str]:
    """Find published servers that a module would read by their port outside: it is the port inside that counts."""
    for i, entry in enumerate(config.publish):
        outside, inside = (parse_endpoint(text).port for text in (entry.outside, entry.inside))
        module = config.module_of(outside, entry.protocol)
        if module is not None and config.module_of(inside, entry.protocol) is None:
            yield (
                f"publish[{i}].inside: port {inside} is none of alg.{module[0]}.ports, and nobody reads what comes to "
                f"port {outside}"
            )


def _accounts(config: Config) -> Iterator[str]:
    process = config.process
    if process.user == "root":
        yield "process.user: workers read what strangers send, and as root they may do anything; name another user"
    elif process.user == process.broker_user and config.broker_wanted:
        yield f"process.user: workers and the broker are both {process.user}: give the broker a user of its own"


def _shadowed(rules: list[Rule]) -> Iterator[str]:
    """Find rules that never decide because an earlier rule covers them. Each rule is compared with the first rules
    only, so that thousands of rules take little time: a rule that covers others by mistake is nearly always one of the
    first."""
    earlier_rules: list[Rule] = []
    fxp = any("fxp" in rule.commands for rule in rules)
    for i, rule in enumerate(rules):
        first = next((earlier for earlier in earlier_rules if covers(earlier, rule, fxp=fxp)), None)
        if first is not None:
            where = f" ({first.place})" if first.place else ""
            yield f"rule[{i}]: never decides: {first.label}{where} stands before it and matches all that it does"
        elif len(earlier_rules) < _MOST_EARLIER:
            earlier_rules.append(rule)

"""Finds values of the right type that make no sense. The message of each error begins with the path of the key."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import msgspec

from alg.address import Endpoint
from alg.registry import BrokenModule, transports
from gateway.config.rules import RuleError, compile_rules
from gateway.config.schema import Config, lifetime_range, parse_endpoint, port_range
from gateway.model.hosts import TRANSLATION_LENGTHS, configured_name
from gateway.model.requests import Network

_MOST_WORKERS = 1024
_LONGEST_PERMANENT = 31_536_000  # seconds: a year
_MOST_FORWARD_FROM = 8  # gateway.lease.validate.MOST_PEERS
_LONGEST_RUN_DIR = 107 - len("/supervisor.sock")  # bytes; unix(7): a socket's path has 108, the last one zero


class BadValue(Exception):
    """A value of the right type that makes no sense. The message begins with the path of the key."""


def check(config: Config) -> None:
    """Raise BadValue for the first value that makes no sense."""
    network = config.network
    for i, text in enumerate(network.inside):
        _valid(f"network.inside[{i}]", text, _network)
    for i, name in enumerate(network.inside_interfaces):
        if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}\+?", name):
            raise BadValue(f"network.inside_interfaces[{i}]: {name!r} is not the name of an interface")
    if network.inside_interfaces and not network.inside:
        raise BadValue("network.inside: must name the inside networks, as network.inside_interfaces is set")
    for i, text in enumerate(network.nat64):
        if _valid(f"network.nat64[{i}]", text, ipaddress.IPv6Network).prefixlen not in TRANSLATION_LENGTHS:
            lengths = ", ".join(map(str, TRANSLATION_LENGTHS))
            raise BadValue(f"network.nat64[{i}]: the length of {text} is none of {lengths}")
    outside = network.outside
    if outside != "auto" and _valid("network.outside", outside, ipaddress.ip_address).is_unspecified:
        raise BadValue(f'network.outside: {outside} is no host\'s address (leave it out, or write "auto")')
    if not config.socks.listen and not config.socks.tls.listen and not config.transparent_enabled:
        raise BadValue("socks.listen: is empty and network.inside_interfaces too: there is nothing to do")
    for i, text in enumerate(config.socks.listen):
        _valid(f"socks.listen[{i}]", text, _listening)
    if not config.socks.auth:
        raise BadValue("socks.auth: must name at least one method")
    _positive("socks.handshake_timeout", config.socks.handshake_timeout)
    _positive("socks.bind_timeout", config.socks.bind_timeout)
    _positive("socks.udp_idle_timeout", config.socks.udp_idle_timeout)
    _check_auth(config)
    _check_tls(config)
    _ports("transparent.port", [config.transparent.port])
    _ports("transparent.ports", config.transparent.ports)
    _positive("transparent.datagram_rate", config.transparent.datagram_rate)
    _check_publish(config)
    if config.socks.listen and not config.socks.protocols:
        raise BadValue("socks.protocols: is empty, and socks.listen is not")
    low, high = _valid("pinhole.ports", config.pinhole.ports, port_range)
    if config.transparent_enabled and low <= config.transparent.port <= high:
        raise BadValue(f"pinhole.ports: {config.pinhole.ports} contains transparent.port {config.transparent.port}")
    _positive("pinhole.per_client", config.pinhole.per_client)
    _positive("pinhole.rate", config.pinhole.rate)
    for key, number in msgspec.structs.asdict(config.limits).items():
        if number < 0:
            raise BadValue(f"limits.{key}: {number} is negative (0: no limit)")
    if config.pinhole.backend == "kernel" and not network.inside:
        raise BadValue("pinhole.backend: kernel pinholes lead to inside clients, and network.inside is empty")
    if not config.log.syslog.startswith("/"):
        _valid("log.syslog", config.log.syslog, parse_endpoint)
    _check_portmap(config)
    _check_forward(config)
    _check_alg(config)
    _check_rules(config)
    if config.console.listen:
        _valid("console.listen", config.console.listen, _listening)
    for i, host in enumerate(config.console.hosts):
        if not re.fullmatch(r"[A-Za-z0-9.\-\[\]:]{1,260}", host):
            raise BadValue(f"console.hosts[{i}]: {host!r} is not a name or address, with or without a port")
    _check_listening(config)
    if not 0 <= config.process.workers <= _MOST_WORKERS:
        raise BadValue(f"process.workers: {config.process.workers} is not between 0 (one per core) and {_MOST_WORKERS}")
    if not config.process.run_dir.startswith("/"):
        raise BadValue(f"process.run_dir: {config.process.run_dir!r} is not an absolute path")
    if len(os.fsencode(config.process.run_dir)) > _LONGEST_RUN_DIR:
        raise BadValue(f"process.run_dir: is longer than {_LONGEST_RUN_DIR} bytes, too long for the sockets in it")
    if not 0 <= config.network.keepalive <= 32767:  # what the kernel takes
        raise BadValue(f"network.keepalive: {config.network.keepalive:g} is not between 0 and 32767 seconds")
    _seconds("process.drain_timeout", config.process.drain_timeout)
    _seconds("process.retire_timeout", config.process.retire_timeout)


def _network(text: str) -> None:
    """Parse a network such as "192.168.56.0/24". Raises ValueError with what is wrong, and what would be right."""
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" not in str(error):
            raise
        whole = ipaddress.ip_network(text, strict=False)
        raise ValueError(f"{text} has host bits set (write {whole} for the network)") from None


def _listening(text: str) -> Endpoint:
    endpoint = parse_endpoint(text)
    if "%" in endpoint.host:
        raise ValueError(f"{text!r} has a zone, and a listener has none; listen on another address of the interface")
    return endpoint


def _check_listening(config: Config) -> None:
    """Check that no two listeners are at the same endpoint."""
    used: dict[str, Endpoint] = {}
    if config.transparent_enabled:
        used["transparent.port"] = Endpoint("::", config.transparent.port)
    if "upnp" in config.portmap.protocols:
        if config.portmap.http_port == config.transparent.port:
            raise BadValue(f"portmap.http_port: {config.portmap.http_port} is taken by transparent.port")
        used["portmap.http_port"] = Endpoint("::", config.portmap.http_port)
    wanted = dict(config.socks_listeners)
    if config.console.listen:
        wanted["console.listen"] = parse_endpoint(config.console.listen)
    for key, endpoint in wanted.items():
        for other, there in used.items():
            if endpoint.port == there.port and (other.endswith("port") or _overlap(endpoint, there)):
                raise BadValue(f"{key}: {endpoint} is taken by {other}; choose another port")
        used[key] = endpoint


def _overlap(first: Endpoint, second: Endpoint) -> bool:
    """Whether two listeners of one port overlap: they are at the same address, or one is at all addresses of the
    family."""
    return first.version == second.version and (
        first.host == second.host or first.ip.is_unspecified or second.ip.is_unspecified
    )


def _check_auth(config: Config) -> None:
    socks = config.socks
    if "gssapi" in socks.auth:
        if find_spec("gssapi") is None:
            raise BadValue("socks.auth: gssapi needs the Python package gssapi (pip install 'algate[gssapi]')")
        if not socks.gssapi.protection:
            raise BadValue("socks.gssapi.protection: must name at least one level")
    for key, path in (("socks.users", socks.users), ("socks.gssapi.keytab", socks.gssapi.keytab)):
        if not path.startswith("/"):
            raise BadValue(f"{key}: {path!r} is not an absolute path")
    _positive("socks.ident_timeout", socks.ident_timeout)
    if socks.guard.failures < 0:
        raise BadValue(f"socks.guard.failures: {socks.guard.failures} is negative (0: no bans)")
    _positive("socks.guard.window", socks.guard.window)
    _positive("socks.guard.ban", socks.guard.ban)


def _check_tls(config: Config) -> None:
    tls = config.socks.tls
    for i, text in enumerate(tls.listen):
        _valid(f"socks.tls.listen[{i}]", text, _listening)
    for key, path in (("certificate", tls.certificate), ("client_ca", tls.client_ca)):
        if path and not path.startswith("/"):
            raise BadValue(f"socks.tls.{key}: {path!r} is not an absolute path")
        if path and not tls.listen:
            raise BadValue(f"socks.tls.{key}: is set, and socks.tls.listen is not")
    if tls.listen and not tls.certificate:
        raise BadValue("socks.tls.listen: needs socks.tls.certificate")
    if tls.listen and not tls.client_ca and set(config.socks.auth) == {"gssapi"}:
        raise BadValue(
            "socks.tls.listen: nobody could authenticate there: GSSAPI is not available inside TLS "
            "(set socks.tls.client_ca, or add a method to socks.auth)"
        )


def _check_publish(config: Config) -> None:
    seen: set[tuple[str, Endpoint]] = set()
    for i, entry in enumerate(config.publish):
        outside = _valid(f"publish[{i}].outside", entry.outside, parse_endpoint)
        inside = _valid(f"publish[{i}].inside", entry.inside, parse_endpoint)
        _ports(f"publish[{i}].outside", [outside.port])
        _ports(f"publish[{i}].inside", [inside.port])
        _check_way_in(config, f"publish[{i}]", outside, inside)
        if not any(inside.ip in network for network in config.inside_networks):
            raise BadValue(f"publish[{i}].inside: {inside.host} is not in network.inside")
        if inside.version != outside.version:
            raise BadValue(f"publish[{i}].outside: {outside.host} is of another family than {inside.host}")
        for where, endpoint in (("outside", outside), ("inside", inside)):
            if where == "inside" and entry.protocol == "tcp":
                continue  # one server may be found at several places; a socket of UDP has one endpoint outside
            if (f"{entry.protocol} {where}", endpoint) in seen:
                raise BadValue(f"publish[{i}].{where}: {endpoint} is published already")
            seen.add((f"{entry.protocol} {where}", endpoint))
    if config.publish and not config.transparent_enabled:
        raise BadValue("publish[0]: needs network.inside_interfaces, as its connections are redirected too")


def _check_way_in(config: Config, key: str, outside: Endpoint, inside: Endpoint) -> None:
    """Check that packets can come to the public endpoint of a server and go on to the server."""
    ip = outside.ip
    if ip.is_unspecified or ip.is_loopback or ip.is_multicast or outside.host == "255.255.255.255":
        raise BadValue(
            f"{key}.outside: no packet from outside has the destination {outside.host}; name a public address"
        )
    for network in config.inside_networks:
        ends = network.network_address, network.broadcast_address
        if network.version == 4 and network.prefixlen < 31 and inside.ip in ends:
            raise BadValue(f"{key}.inside: {inside.host} is no host's address in {network}")


def _check_portmap(config: Config) -> None:
    portmap = config.portmap
    _valid("portmap.ports", portmap.ports, port_range)
    _valid("portmap.inside_ports", portmap.inside_ports, port_range)
    _valid("portmap.lifetime", portmap.lifetime, lifetime_range)
    _positive("portmap.per_client", portmap.per_client)
    if not 1 <= portmap.permanent <= _LONGEST_PERMANENT:
        raise BadValue(f"portmap.permanent: {portmap.permanent} is not between 1 and {_LONGEST_PERMANENT} seconds")
    _ports("portmap.http_port", [portmap.http_port])
    for i, name in enumerate(portmap.protocols):
        if name in portmap.protocols[:i]:
            raise BadValue(f"portmap.protocols[{i}]: {name} is there twice")
    if portmap.upstream and not portmap.protocols:
        raise BadValue("portmap.upstream: is for mappings that clients ask for, and portmap.protocols is empty")
    if portmap.protocols and not config.transparent_enabled:
        raise BadValue("portmap.protocols: needs network.inside_interfaces, the interfaces where clients ask")
    if portmap.protocols and not config.broker_wanted:
        raise BadValue("portmap.protocols: mappings are pinholes in the kernel, and pinhole.backend is userspace")


def _check_forward(config: Config) -> None:
    seen: set[tuple[str, Endpoint]] = set()
    published = {(entry.protocol, parse_endpoint(entry.outside)) for entry in config.publish}
    for i, entry in enumerate(config.forward):
        outside = _valid(f"forward[{i}].outside", entry.outside, parse_endpoint)
        inside = _valid(f"forward[{i}].inside", entry.inside, parse_endpoint)
        _ports(f"forward[{i}].outside", [outside.port])
        _ports(f"forward[{i}].inside", [inside.port])
        _check_way_in(config, f"forward[{i}]", outside, inside)
        if not any(inside.ip in network for network in config.inside_networks):
            raise BadValue(f"forward[{i}].inside: {inside.host} is not in network.inside")
        if inside.version != outside.version:
            raise BadValue(f"forward[{i}].outside: {outside.host} is of another family than {inside.host}")
        if outside != inside and any(outside.ip in network for network in config.inside_networks):
            raise BadValue(f"forward[{i}].outside: {outside.host} is in network.inside, and no public address")
        for transport in entry.protocol.split("+"):
            if (transport, outside) in published:
                raise BadValue(f"forward[{i}].outside: {outside} is published (publish)")
            for where, endpoint in (("outside", outside), ("inside", inside)):
                if (f"{transport} {where}", endpoint) in seen:
                    raise BadValue(f"forward[{i}].{where}: {endpoint} is forwarded already")
                seen.add((f"{transport} {where}", endpoint))
        _check_forward_from(f"forward[{i}].from", entry.from_, inside.version)
    if config.forward and not (config.transparent_enabled and config.broker_wanted):
        raise BadValue("forward[0]: needs network.inside_interfaces, and pinholes in the kernel (pinhole.backend)")


def _check_forward_from(key: str, networks: tuple[str, ...], version: int) -> None:
    if len(networks) > _MOST_FORWARD_FROM:
        raise BadValue(f"{key}: names {len(networks)} networks, and {_MOST_FORWARD_FROM} is the most")
    found: list[Network] = []
    for i, text in enumerate(networks):
        _valid(f"{key}[{i}]", text, _network)
        network = ipaddress.ip_network(text)
        if network.version != version:
            raise BadValue(f"{key}[{i}]: {text} is of another family than the server")
        if not network.prefixlen:
            raise BadValue(f"{key}[{i}]: {text} is everybody (leave `from` out)")
        if any(network.version == other.version and network.overlaps(other) for other in found):
            raise BadValue(f"{key}[{i}]: {text} overlaps another network of the list")
        found.append(network)


def _check_rules(config: Config) -> None:
    """Check [dns], [[upstream]] and [[rule]]."""
    for i, text in enumerate(config.dns.servers):
        _valid(f"dns.servers[{i}]", text, parse_name_server)
    _positive("dns.timeout", config.dns.timeout)
    _positive("dns.cache_size", config.dns.cache_size)
    names: set[str] = set()
    for i, upstream in enumerate(config.upstream):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", upstream.name):
            raise BadValue(f"upstream[{i}].name: {upstream.name!r} is not a word (letters, digits, _ . -)")
        if upstream.name in names:
            raise BadValue(f"upstream[{i}].name: {upstream.name} is there twice")
        names.add(upstream.name)
        _valid(f"upstream[{i}].address", upstream.address, parse_host_port)
        colon = upstream.kind == "http" and ":" in upstream.user
        if len(upstream.user.encode()) > 255 or "\0" in upstream.user or colon:
            raise BadValue(f"upstream[{i}].user: {upstream.user!r} cannot be sent")
        if upstream.password_file and (not upstream.user or upstream.kind == "socks4a"):
            raise BadValue(f"upstream[{i}].password_file: needs a user, and a kind that knows passwords")
        if upstream.kind == "socks5" and upstream.user and not upstream.password_file:
            raise BadValue(f"upstream[{i}].user: socks5 wants a password too (password_file)")
        for key, text in (
            ("ca", upstream.ca),
            ("certificate", upstream.certificate),
            ("server_name", upstream.server_name),
        ):
            if text and not upstream.tls:
                raise BadValue(f"upstream[{i}].{key}: is set, and upstream[{i}].tls is not true")
        if upstream.server_name:
            _valid(f"upstream[{i}].server_name", upstream.server_name, _certified_name)
    try:
        compile_rules(config)
    except RuleError as error:
        raise BadValue(f"{error.key}: {error}") from error
    labels: set[str] = set()
    for i, rule in enumerate(config.rule):
        if rule.name and rule.name in labels:
            raise BadValue(f"rule[{i}].name: {rule.name!r} is there twice")
        labels.add(rule.name)
        for key, words in (("via", (rule.via,) if isinstance(rule.via, str) else rule.via), ("chain", rule.chain)):
            for name in words:
                if name not in names:
                    raise BadValue(f"rule[{i}].{key}: there is no upstream {name!r}")
        if sum(upstream.tls for upstream in config.upstream for name in rule.chain if name == upstream.name) > 1:
            raise BadValue(f"rule[{i}].chain: more than one of its upstreams is inside TLS; one can be")


def parse_host_port(text: str) -> tuple[str, int]:
    """Parse "proxy.example:1080", "192.0.2.1:1080" or "[2001:db8::1]:1080". Raises ValueError with what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return configured_name(host), int(port)
    return endpoint.host, endpoint.port


def _certified_name(text: str) -> None:
    """Raise ValueError if this is neither an address nor a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        configured_name(text)


def parse_name_server(text: str) -> tuple[str, int]:
    """Parse "192.0.2.53", "2001:db8::53", or with a port "192.0.2.53:5353". Raises ValueError with what is wrong."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        endpoint = parse_endpoint(text)
        return endpoint.host, endpoint.port


def _check_alg(config: Config) -> None:
    try:
        known = transports()
    except BrokenModule as error:
        raise BadValue(f"alg: {error}") from error
    owner: dict[int, str] = {}
    for name, section in config.alg.items():
        if name not in known:
            raise BadValue(f"alg.{name}: no such protocol module (installed: {', '.join(sorted(known))})")
        _ports(f"alg.{name}.ports", section.ports)
        for transport in section.transports:
            if transport not in known[name]:
                raise BadValue(f"alg.{name}.transports: the module reads only {', '.join(known[name])}")
        for port in section.ports:
            if owner.setdefault(port, name) != name:
                raise BadValue(f"alg.{owner[port]}.ports and alg.{name}.ports: port {port} is in both")


def _valid(key: str, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise BadValue(f"{key}: {error}") from error


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise BadValue(f"{key}: {value:g} is not greater than 0")
    if math.isinf(value):
        raise BadValue(f"{key}: {value:g} is no number that could be reached")


def _seconds(key: str, value: float) -> None:
    if value < 0:
        raise BadValue(f"{key}: {value:g} is negative")
    if not math.isfinite(value):
        raise BadValue(f"{key}: {value:g} is not a number of seconds")


def _ports(key: str, ports: Iterable[int]) -> None:
    for port in ports:
        if not 1 <= port <= 65535:
            raise BadValue(f"{key}: {port} is not a port (1 to 65535)")

"""The doctor's checks of what this router's NAT does to games, calls and whatever finds its peer by hole punching
(RFC 4787, docs/how-to/nat-types.md)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway.config.schema import Config
from gateway.host.finding import Finding
from gateway.host.foreign_chains import ruleset
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError
from gateway.net.above import NoRouterAnswer, RouterRefused, find
from gateway.net.addresses import facing_the_world, is_private, router_above

LEAST_UDP_TIMEOUT = 120  # seconds (RFC 4787, REQ-5)
_PROC = Path("/proc/sys")
_SPOKEN = {"pcp": "PCP", "natpmp": "NAT-PMP", "upnp": "UPnP"}


def examine_nat(config: Config, proc: Path = _PROC) -> Iterator[Finding]:
    """Return the checks. `proc` is /proc/sys."""
    try:
        ipv4, ipv6, nft = list(_of_iptables("iptables-save")), list(_of_iptables("ip6tables-save")), list(_of_nft())
    except AlgateError as error:
        yield Finding("NAT type", "warning", f"not known: {error}", "run the doctor as root")
    else:
        yield _ports([*_random_iptables([*ipv4, *ipv6]), *_random_nft(nft)])
        yield from _translation(config, bool(ipv4) or any(rule["family"] in ("ip", "inet") for rule, _ in nft))
    yield from _timeouts(proc)
    if config.portmap_wanted or config.forward:
        yield from _public(config)


def _ports(rules: Sequence[str]) -> Finding:
    """Check whether one socket leaves from one port, to whomever it sends (REQ-1). `rules`: those that choose ports at
    random."""
    if rules:
        return Finding(
            "NAT type",
            "warning",
            f"strict: each destination sees another port of one socket, so hole punching and games fail ({rules[0]})",
            "take --random and --random-fully out of that rule (docs/how-to/nat-types.md)",
        )
    return Finding("NAT type", "ok", "moderate: one socket leaves from one port; with a mapping it is open")


def _translation(config: Config, there: bool) -> Iterator[Finding]:
    """Check whether a rule translates what IPv4 clients send from private addresses; `there`: this host has one."""
    private = [network for network in config.inside_networks if network.version == 4 and network.is_private]
    if not private:
        return
    if there:
        yield Finding("translation", "ok", "this host has rules that translate source addresses")
    else:
        yield Finding(
            "translation",
            "warning",
            f"no rule translates what clients of {private[0]} send, so servers outside cannot answer them, unless"
            " another router translates",
            "iptables -t nat -A POSTROUTING -o OUTSIDE-INTERFACE -j MASQUERADE",
        )


def _of_iptables(program: str) -> Iterator[str]:
    """Yield the rules of iptables or ip6tables that translate source addresses."""
    for line in run_program([program, "-t", "nat"]).splitlines():
        if line.startswith("-A ") and {"MASQUERADE", "SNAT", "NETMAP"} & {*shlex.split(line)}:
            yield line


def _of_nft() -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the rules of nftables that translate source addresses, and what they say of it."""
    for entry in ruleset():
        rule: dict[str, Any] = entry.get("rule", {})
        for expression in rule.get("expr", ()):
            for kind in ("masquerade", "snat"):
                if kind in expression:
                    yield rule, expression[kind]


def _random_iptables(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if {"--random", "--random-fully"} & {*shlex.split(line)})


def _random_nft(rules: Iterable[tuple[dict[str, Any], Any]]) -> Iterator[str]:
    for rule, target in rules:
        if isinstance(target, dict) and {"random", "fully-random"} & {*_flags(target)}:
            yield f"table {rule['family']} {rule['table']} chain {rule['chain']}"


def _flags(target: dict[str, Any]) -> list[str]:
    flags = target.get("flags", [])
    return [flags] if isinstance(flags, str) else flags


def _timeouts(proc: Path) -> Iterator[Finding]:
    """Check how long the kernel remembers a socket that is silent (REQ-5)."""
    try:
        seconds = int((proc / "net/netfilter/nf_conntrack_udp_timeout_stream").read_text())
    except (OSError, ValueError):
        return  # nothing is tracked yet
    if seconds < LEAST_UDP_TIMEOUT:
        yield Finding(
            "UDP timeout",
            "warning",
            f"a call or game that is silent for {seconds} s loses its port",
            "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=300",
        )
    else:
        yield Finding("UDP timeout", "ok", f"{seconds} s")


def _public(config: Config) -> Iterator[Finding]:
    """Check whether the world can reach what is mapped."""
    named = config.network.outside
    for version in sorted({network.version for network in config.inside_networks}):
        address = named if named != "auto" and (":" in named) == (version == 6) else facing_the_world(version)
        if version == 6 and address is None:
            continue  # IPv6 is not what a router has to have
        name = f"public address IPv{version}"
        if address is None:
            yield Finding(name, "warning", "there is no default route, so none is known", "name it in network.outside")
        elif is_private(address):
            yield _behind_another(config, version, name, address)
        else:
            yield Finding(name, "ok", address)


def _behind_another(config: Config, version: int, name: str, address: str) -> Finding:
    """Check whether the router above opens what is mapped here."""
    behind = f"{address} is a private one: another NAT is in front"
    if version == 6 or not config.portmap.protocols:
        hint = "forward the ports there too, or ask your provider for an address of your own"
        return Finding(name, "warning", f"{behind}, and mappings are reachable from there only", hint)
    router = router_above(version)
    above = find(address, router, b"doctor") if router is not None else None
    if above is None:
        hint = "turn on UPnP there, forward the ports there too, or ask your provider for an address of your own"
        said = f"{behind} and answers neither PCP nor NAT-PMP nor UPnP, so mappings are reachable from there only"
        return Finding(name, "warning", said, hint)
    speaks = _SPOKEN[above.protocol]
    if not config.portmap.upstream:
        said = f"{behind} ({above.router}), which opens ports by {speaks}, but is not asked for any"
        return Finding(name, "warning", said, "set portmap.upstream = true")
    try:
        external = above.look().external
    except (NoRouterAnswer, RouterRefused) as error:
        return Finding(name, "warning", f"{behind}: {error}", f"look at {above.router}")
    if external is None or is_private(external):
        said = f"{behind} ({above.router}, asked by {speaks}), whose own address is {external or 'not known'}"
        return Finding(name, "warning", said, "ask your provider for an address of your own")
    return Finding(name, "ok", f"{external}, of the router above ({above.router}), which is asked by {speaks}")

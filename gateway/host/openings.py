"""The doctor's trial of openings: what is copied of this host, and the results (gateway.host.trial)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.config.schema import Config, parse_endpoint
from gateway.host import foreign_chains, rules
from gateway.host.finding import Finding
from gateway.host.native import lines_for, users_of
from gateway.host.plan import Foreign, Link, Plan, Tried
from gateway.host.programs import output_of, run_program

_DEADLINE = 60.0  # seconds
_IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
_IPTABLES_CHAIN = re.compile(r"ip6? filter (INPUT|FORWARD)\b")
_OWNED = re.compile(r"(?m)^\s*flags .*\bowner\b.*\n")  # such a table would go with the program that made it
_MOST_OTHERS = 200  # interfaces
# Somebody outside: hosts that a firewall has no reason to know, but not of a prefix that firewalls drop.
_PEERS = ("9.9.9.10", "2620:fe::10")


class CannotTry(Exception):
    """The trial is not possible. The text says what is missing."""


def try_openings(config: Config) -> list[Tried]:
    """Carry out the trial, in a network namespace that exists as long as the attempt. Needs root. Raises CannotTry,
    AlgateError."""
    plan = plan_of(config)
    unshare = shutil.which("unshare", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if unshare is None:
        raise CannotTry("unshare is not installed")
    try:
        done = subprocess.run(
            [unshare, "--net", sys.executable, "-m", "gateway.host.trial"],
            input=msgspec.json.encode(plan),
            capture_output=True,
            timeout=_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotTry(str(error)) from error
    if done.returncode:
        raise CannotTry(done.stderr.decode(errors="replace").strip()[-500:])
    answer = msgspec.json.decode(done.stdout)
    if isinstance(answer, dict):
        raise CannotTry(str(answer["error"])[:500])
    return msgspec.convert(answer, list[Tried])


def plan_of(config: Config) -> Plan:
    """Return what to copy of this host. Raises CannotTry, AlgateError."""
    links = _links()
    inside = _inside(config, links)
    outside, via = _outside(config, links)
    entries = foreign_chains.ruleset()
    needed = {
        str(chain): tuple(lines_for(config, chain.hook, chain.family, chain.priority))
        for chain in foreign_chains.candidates(entries, config.instance)
    }
    own = {
        program: text
        for program, family in (("iptables", "ipv4"), ("ip6tables", "ipv6"))
        if config.transparent_enabled and (text := rules.render(config, family)) and not _has(program, config.instance)  # type: ignore[arg-type]
    }
    named = [name for name in links if name not in ("lo", inside, outside)]
    sockets = [parse_endpoint(text) for text in config.socks.listen]
    return Plan(
        inside=Link(inside, tuple(links[inside])),
        outside=Link(outside, tuple(links[outside]), via),
        others=tuple(named[:_MOST_OTHERS]),
        clients=_clients(config, links[inside]),
        peers=_peers(links[outside], via),
        tables=tuple(_tables(entries, config.instance)),
        iptables={
            program: text for program in ("iptables", "ip6tables") if (text := output_of([f"{program}-save"])).strip()
        },
        own=own,
        foreign=tuple(Foreign(chain, lines) for chain, lines in needed.items()),
        instance=config.instance,
        pinholes=config.pinhole_ports,
        transparent=config.transparent.port if config.transparent_enabled else None,
        modules=config.module_ports(),
        socks=tuple(at for at in sockets if at.host in _hosts(links[inside])),
        published=tuple(at for at in config.published if at.host in _hosts(links[outside])),
        user=users_of(config)[0],
        legacy=_legacy(),
        legacy_lines=tuple(_legacy_lines(config)),
    )


def _legacy() -> dict[str, str]:
    """Return the rules of iptables-legacy where iptables is another one, by program."""
    found = {}
    for program in ("iptables-legacy", "ip6tables-legacy"):
        names = f"/proc/net/{program.removesuffix('-legacy').replace('tables', '_tables')}_names"
        with contextlib.suppress(OSError), open(names, encoding="ascii") as tables:
            if tables.read().strip() and (text := output_of([f"{program}-save"])).strip():
                found[program] = text
    return found


def _legacy_lines(config: Config) -> Iterator[str]:
    """Return the commands that let through what the gateway admits, for iptables-legacy beside another iptables."""
    for program, family in (("iptables", "ipv4"), ("ip6tables", "ipv6")):
        text = rules.render(config, family) if config.transparent_enabled else None  # type: ignore[arg-type]
        for rule in reversed((text or "").partition("*filter\n")[2].splitlines()):
            found = re.match(r"-A \S+-(INPUT|FORWARD) (.*-j ACCEPT)$", rule)
            if found:
                yield f"{program}-legacy -I {found[1]} {found[2]}"


def _has(program: str, instance: str) -> bool:
    return f":{instance.upper()}-" in output_of([f"{program}-save"])


def _links() -> dict[str, list[str]]:
    """Return the interfaces of this host with their addresses, without link-local ones."""
    found: dict[str, list[str]] = {}
    for link in json.loads(run_program(["ip", "-j", "addr", "show"])):
        addresses = [address for address in link.get("addr_info", ()) if address.get("scope") == "global"]
        found[link["ifname"]] = [f"{address['local']}/{address['prefixlen']}" for address in addresses]
    return found


def _inside(config: Config, links: dict[str, list[str]]) -> str:
    names = [name for name in config.network.inside_interfaces if links.get(name)]
    names += [name for name, addresses in links.items() if name != "lo" and _clients(config, addresses)]
    if not names:
        raise CannotTry("no interface of network.inside_interfaces has an address")
    return names[0]


def _outside(config: Config, links: dict[str, list[str]]) -> tuple[str, tuple[str, ...]]:
    """Return the interface to the outside, and the neighbours of the default routes."""
    routes: list[dict[str, Any]] = []
    for family in ("-4", "-6"):
        routes += json.loads(run_program(["ip", "-j", family, "route", "show", "default"]) or "[]")
    inside = config.network.inside_interfaces
    ways = [route for route in routes if route.get("dev") in links and route.get("dev") not in inside]
    if ways:
        name = str(ways[0]["dev"])
        return name, tuple(str(way["gateway"]) for way in ways if way.get("dev") == name and "gateway" in way)
    for name, addresses in links.items():
        if name != "lo" and name not in inside and addresses and not _clients(config, addresses):
            return name, ()
    raise CannotTry("no interface to the outside has an address")


def _clients(config: Config, addresses: Sequence[str]) -> tuple[str, ...]:
    """Choose a client of each family: a host of an inside network on this interface that is not the router."""
    found = []
    for text in addresses:
        interface = ipaddress.ip_interface(text)
        if any(interface.ip in network for network in config.inside_networks):
            host = _another(interface)
            if host is not None and any(ipaddress.ip_address(host) in network for network in config.inside_networks):
                found.append(host)
    return tuple(found)


def _peers(addresses: Sequence[str], via: Sequence[str]) -> tuple[str, ...]:
    """Choose a host outside, of each family: beyond the default route, or else a neighbour."""
    found = []
    for text in addresses:
        interface = ipaddress.ip_interface(text)
        far = next((peer for peer in _PEERS if (":" in peer) == (interface.version == 6)), None)
        beyond = any((":" in gateway) == (interface.version == 6) for gateway in via)
        host = far if beyond else _another(interface)
        if host is not None:
            found.append(host)
    return tuple(found)


def _another(interface: Any) -> str | None:
    """Choose another host of an interface's network, from its end, where hosts are rarest."""
    network = interface.network
    for back in range(2, 10):
        if network.num_addresses > back:
            host = network[network.num_addresses - back]
            if host not in (interface.ip, network.network_address):
                return str(host)
    return None


def _hosts(addresses: Sequence[str]) -> set[str]:
    return {text.partition("/")[0] for text in addresses}


def _tables(entries: Sequence[dict[str, Any]], instance: str) -> list[str]:
    """Return the nft text of all tables but the instance's own; of iptables' tables only the chains that are not
    iptables'."""
    texts = []
    for table in (entry["table"] for entry in entries if "table" in entry):
        family, name = table["family"], table["name"]
        if (family, name) == ("inet", instance):
            continue
        if family in ("ip", "ip6") and name in _IPTABLES_TABLES:
            saved = {
                line[1:].split()[0]
                for program in ("iptables", "ip6tables")
                for line in output_of([f"{program}-save", "-t", name]).splitlines()
                if line.startswith(":")
            }
            chains = [
                entry["chain"]["name"]
                for entry in entries
                if "chain" in entry and (entry["chain"]["family"], entry["chain"]["table"]) == (family, name)
            ]
            texts += [
                run_program(["nft", "list", "chain", family, name, chain]) for chain in chains if chain not in saved
            ]
        else:
            text = run_program(["nft", "list", "table", family, name])
            texts.append(_OWNED.sub("", text))
    return texts


def lines_of(tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    """Return the lines, each with its chain before it, that let through what could not pass, and what each lets
    through."""
    lines: dict[str, list[Tried]] = {}
    for trial in tried:
        for line in trial.lines:
            lines.setdefault(line, []).append(trial)
    return lines


def findings(tried: Sequence[Tried], instance: str) -> Iterator[Finding]:
    """Return the results as the doctor's findings."""
    for line, let_through in lines_of(tried).items():
        stops = " and ".join(dict.fromkeys(trial.stopped_by for trial in let_through))
        yield Finding(
            f"openings through {' '.join(line.split()[:3])}",
            "warning",
            f"{stops} stops {'; '.join(trial.what for trial in let_through)}",
            f"nft insert rule {line} comment {instance}",
        )
    for trial in tried:
        if not trial.passed:
            remedy = "algate rules apply" if _IPTABLES_CHAIN.match(trial.stopped_by) else trial.remedy
            yield Finding("openings", "warning", f"{trial.what}: stopped by {trial.stopped_by}", remedy)
    if tried and all(trial.passed and not trial.lines for trial in tried):
        yield Finding("openings", "ok", f"{len(tried)} kinds of packets tried in a copy of the rules: all pass")

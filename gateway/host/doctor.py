"""Checks whether this host is fit for a configuration. Each check returns a finding, with what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from gateway.broker.netlink import NetfilterError
from gateway.config.schema import Config
from gateway.host import foreign_chains, helpers, openings, rules
from gateway.host.checks import examine_host, examine_router
from gateway.host.finding import Finding
from gateway.host.keeper import look_at
from gateway.host.nat_type import examine_nat
from gateway.host.port_owners import examine_ports
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError
from gateway.model.requests import Network

_SBIN = ":/usr/sbin:/sbin"  # not in everybody's PATH
_DEADLINE = 30.0  # seconds for trying the kernel
_PACKAGES = {
    "nft": "nftables",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


def examine(config: Config) -> list[Finding]:
    """Return the findings of all checks that concern this configuration. Root sees more."""
    privileged = config.broker_wanted or config.transparent_enabled
    found = [Finding("configuration", "ok", f"{len(config.alg)} modules, instance {config.instance}")]
    found += examine_host(config)
    if not privileged:
        return [
            *found,
            Finding("privilege", "ok", "nothing privileged is configured: SOCKS and userspace pinholes only"),
        ]
    found.append(_root())
    found += _programs()
    found += _interfaces(config)
    found += _inside(config)
    found += _forwarding(config)
    found += _bridge(config)
    found += _helpers(config)
    found += examine_router(config)
    found += examine_nat(config)
    found += examine_ports(config)
    found += _rules(config)
    found += _openings(config)
    found += _kernel(config)
    return found


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("privilege", "ok", "root; children give up all that they do not need")
    return Finding(
        "privilege", "failed", "this configuration needs root", "start as root, or pinhole.backend = 'userspace'"
    )


def _programs() -> Iterator[Finding]:
    for program, package in _PACKAGES.items():
        if shutil.which(program, path=os.environ.get("PATH", "") + _SBIN):
            yield Finding(program, "ok", "installed")
        else:
            yield Finding(program, "failed", "not installed", f"apt-get install {package}")


def _interfaces(config: Config) -> Iterator[Finding]:
    # Asked of the kernel: /sys may be of another network namespace than this process, as in containers.
    there = sorted(name for _, name in socket.if_nameindex())
    for name in config.network.inside_interfaces:
        if name.endswith("+"):
            continue
        if name in there:
            yield Finding(f"interface {name}", "ok", "there")
        else:
            has = f"there is none (this host has {', '.join(there)})"
            yield Finding(f"interface {name}", "failed", has, "correct network.inside_interfaces")


def _inside(config: Config) -> Iterator[Finding]:
    """Check that the inside networks are behind the inside interfaces."""
    names = [name.replace("+", "*") for name in config.network.inside_interfaces]
    for network in config.inside_networks if names else ():
        try:
            within, around = (_routes(which, network) for which in ("root", "match"))
        except (AlgateError, ValueError) as error:
            yield Finding(f"inside {network}", "warning", f"its routes are not known: {error}")
            continue
        around = [route for route in around if route["dst"] != "default"]  # that one leads outside
        around.sort(key=lambda route: int(str(route["dst"]).partition("/")[2] or 0))  # the narrowest one counts
        hops = [hop for route in (*around[-1:], *within) for hop in (route, *route.get("nexthops", ()))]
        ways = list(dict.fromkeys(str(hop["dev"]) for hop in hops if "dev" in hop))
        if any(fnmatchcase(way, name) for way in ways for name in names):
            yield Finding(f"inside {network}", "ok", f"behind {', '.join(ways)}")
        else:
            where = (
                f"is behind {', '.join(ways)}, which is no inside interface"
                if ways
                else "no route but a default one leads there"
            )
            remedy = "correct network.inside or network.inside_interfaces"
            yield Finding(f"inside {network}", "warning", where, remedy)


def _routes(which: Literal["root", "match"], network: Network) -> list[dict[str, Any]]:
    """Return the routes of the main table to parts of the network ("root") or to all of it and more ("match")."""
    argv = ["ip", "-j", f"-{network.version}", "route", "show", which, str(network)]
    routes: list[dict[str, Any]] = json.loads(run_program(argv) or "[]")
    return routes


def _forwarding(config: Config) -> Iterator[Finding]:
    for version, key in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        if not any(network.version == version for network in config.inside_networks):
            continue
        name = key.replace("/", ".")
        if _sysctl(key) == "1":
            yield Finding(f"forwarding IPv{version}", "ok", f"{name} = 1")
        else:
            yield Finding(f"forwarding IPv{version}", "failed", f"{name} is not 1", f"sysctl -w {name}=1")


def _bridge(config: Config) -> Iterator[Finding]:
    """Check bridges: with br_netfilter, packets between two hosts of one bridge pass iptables, and so our REDIRECT."""
    bridges = [name for name in config.network.inside_interfaces if Path("/sys/class/net", name, "bridge").exists()]
    filtered = [name for name in ("iptables", "ip6tables") if _sysctl(f"net/bridge/bridge-nf-call-{name}") == "1"]
    if bridges and filtered:
        yield Finding(
            "br_netfilter",
            "warning",
            f"bridged traffic of {', '.join(bridges)} passes iptables",
            "; ".join(f"sysctl -w net.bridge.bridge-nf-call-{name}=0" for name in filtered),
        )
    else:
        yield Finding("br_netfilter", "ok", "bridged traffic is left alone")


def _helpers(config: Config) -> Iterator[Finding]:
    modules = helpers.ports_of(config)
    found = helpers.attached(modules)
    if not found and (why := foreign_chains.why_unseen()):
        yield Finding("kernel helpers", "warning", f"not known: {why}", "run the doctor as root")
        return
    for name in helpers.HELPERS:
        if name not in modules:
            continue
        attached = [attachment for attachment in found if attachment.helper == name]
        for attachment in attached:
            yield Finding(f"kernel helper {name}", "failed", attachment.where, attachment.detach)
        if not attached:
            yield Finding(f"kernel helper {name}", "ok", f"not attached to port {', '.join(map(str, modules[name]))}")


def _rules(config: Config) -> Iterator[Finding]:
    """Check whether the rules are applied, and the table of a running gateway exists."""
    look = look_at(config)
    match look.state:
        case "applied":
            yield Finding("rules", "ok", "applied")
        case "absent":
            yield Finding("rules", "warning", "not applied", "algate rules apply")
        case "incomplete":
            yield Finding("rules", "warning", f"not as they were applied: {look.detail}", "algate rules apply")
        case "unknown":
            yield Finding("rules", "warning", look.detail, "run the doctor as root")
    if not config.broker_wanted:
        return
    try:
        runs = Path(config.process.run_dir, "supervisor.sock").exists()
    except OSError as error:
        yield Finding(
            "table of pinholes", "warning", f"{config.process.run_dir}: {error.strerror}", "run the doctor as root"
        )
        return
    if runs:
        try:
            whole = _is_whole(config.instance)
        except NetfilterError as error:
            yield Finding("table of pinholes", "warning", str(error), "run the doctor as root")
            return
        if whole:
            yield Finding("table of pinholes", "ok", f"inet {config.instance} is there, with all chains and rules")
        else:
            yield Finding(
                "table of pinholes",
                "warning",
                f"inet {config.instance} is missing or incomplete: another program has changed it",
                "algate reload; rules.restore = true puts it back by itself",
            )


def _is_whole(instance: str) -> bool:
    """Whether the broker's table is complete. Raises NetfilterError."""
    from gateway.broker.netfilter import Netfilter  # needs what only a router has installed (the extra `router`)

    return Netfilter(instance).is_whole()


def _openings(config: Config) -> Iterator[Finding]:
    """Try whether what the gateway opens would pass this host's rules."""
    if os.geteuid() != 0:
        yield Finding("openings", "warning", "not tried: only root can copy the rules", "run the doctor as root")
        return
    try:
        tried = openings.try_openings(config)
    except (openings.CannotTry, AlgateError) as error:
        yield Finding("openings", "warning", f"could not be tried: {error}")
        return
    yield from openings.findings(tried, config.instance)


def _kernel(config: Config) -> Iterator[Finding]:
    """Try the features of the kernel, in a network namespace that exists as long as the attempt."""
    if os.geteuid() != 0:
        yield Finding(
            "kernel", "warning", "not tried: only root can make a network namespace", "run the doctor as root"
        )
        return
    unshare = shutil.which("unshare", path=os.environ.get("PATH", "") + _SBIN)
    if unshare is None:
        return  # said above
    wanted = {"iptables": rules.render(config, "ipv4"), "ip6tables": rules.render(config, "ipv6")}
    try:
        done = subprocess.run(
            [unshare, "--net", sys.executable, "-m", "gateway.host.features"],
            input=json.dumps({program: text for program, text in wanted.items() if text}),
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
        tried: dict[str, str | None] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        yield Finding("kernel", "failed", f"it could not be tried: {error}")
        return
    for name, failure in tried.items():
        if failure is not None:
            yield Finding(f"kernel: {name}", "failed", failure, "a kernel of 5.15 or later with nf_tables and NAT")
        else:
            yield Finding(f"kernel: {name}", "ok", "tried in a network namespace")


def _sysctl(key: str) -> str | None:
    try:
        return Path("/proc/sys", key).read_text().strip()
    except OSError:
        return None

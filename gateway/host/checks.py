"""The doctor's checks of things outside the gateway: clock, name servers, descriptors, ports, rules of other programs.

None of them keeps the gateway from working, so each finding is "ok" or a warning.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.resolver

from gateway.broker.marks import ADMITTED, MEDIA
from gateway.config.check import parse_name_server
from gateway.config.schema import Config, parse_endpoint
from gateway.host.finding import Finding
from gateway.host.foreign_chains import ruleset, why_unseen
from gateway.host.foreign_rules import translators
from gateway.model.certificates import SOON, end_of_authorities, end_of_chain
from gateway.model.errors import AlgateError
from gateway.net.addresses import is_local

ENOUGH_DESCRIPTORS = 16384  # two for each flow, and as many flows as a busy house has
DNS_TIMEOUT = 2.0  # seconds for each name server
_PROC = Path("/proc/sys")


def examine_host(config: Config) -> Iterator[Finding]:
    """Return the checks that concern any configuration."""
    yield _clock()
    yield from _name_servers(config)
    yield _descriptors()
    yield from _listening(config)
    yield from _certificates(config)


def examine_router(config: Config, proc: Path = _PROC) -> Iterator[Finding]:
    """Return the checks of a router that forwards for others. `proc` is its /proc/sys."""
    yield from _reverse_path(config, proc)
    yield _port_range(config, proc)
    yield _listening_ports(config, proc)
    yield _other_translation(config)
    yield from _flowtables(config)


def _clock() -> Finding:
    """Check the clock: rules with a time and all logs rely on it, and a router without a battery starts in the past."""
    now, built = time.time(), Path(__file__).stat().st_mtime
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < built - 86400:
        return Finding("clock", "warning", f"{text} is before this program was installed", "set the clock (NTP)")
    return Finding("clock", "ok", text)


def _name_servers(config: Config) -> Iterator[Finding]:
    try:
        servers = [parse_name_server(text) for text in config.dns.servers]
        if not servers:
            servers = [(str(address), 53) for address in dns.resolver.Resolver().nameservers]
    except dns.exception.DNSException:
        servers = []
    if not servers:
        yield Finding("name servers", "warning", "there are none", "name some in dns.servers, or in /etc/resolv.conf")
    for host, port in servers:
        began = time.monotonic()
        try:
            dns.query.udp(
                dns.message.make_query(".", "NS"), host, timeout=DNS_TIMEOUT, port=port, ignore_unexpected=True
            )
        except (OSError, dns.exception.DNSException) as error:
            reason = str(error) or type(error).__name__
            yield Finding(f"name server {host}", "warning", f"does not answer: {reason}", "correct dns.servers")
        else:
            yield Finding(f"name server {host}", "ok", f"answers in {(time.monotonic() - began) * 1000:.0f} ms")


def _certificates(config: Config) -> Iterator[Finding]:
    """Check that no certificate ends soon, of those that this user may read."""
    tls, now = config.socks.tls, time.time()
    files = {"socks.tls.certificate": tls.certificate, "socks.tls.client_ca": tls.client_ca}
    for i, upstream in enumerate(config.upstream):
        files |= {f"upstream[{i}].ca": upstream.ca, f"upstream[{i}].certificate": upstream.certificate}
    for key, path in files.items():
        try:
            text = Path(path).read_text("ascii", "replace") if path else ""
            end = end_of_chain(text) if key.endswith("certificate") else end_of_authorities(text, now)
        except (OSError, ValueError):  # there is none, or `algate check` says what is wrong with it
            continue
        date = time.strftime("%Y-%m-%d", time.gmtime(end))
        if end <= now:
            yield Finding(f"certificate {key}", "warning", f"has ended on {date}", f"renew {path}")
        elif end - now < SOON:
            yield Finding(f"certificate {key}", "warning", f"ends on {date}", f"renew {path}")
        else:
            yield Finding(f"certificate {key}", "ok", f"valid until {date}")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < ENOUGH_DESCRIPTORS:
        return Finding(
            "descriptors",
            "warning",
            f"{hard} for each process: room for {hard // 2} flows",
            f"LimitNOFILE={4 * ENOUGH_DESCRIPTORS} in the service, or ulimit -n",
        )
    return Finding("descriptors", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"{hard} for each process")


def _listening(config: Config) -> Iterator[Finding]:
    for place, endpoint in config.socks_listeners.items():
        key = place.partition("[")[0]
        if is_local(endpoint.host):
            yield Finding(f"{key} {endpoint}", "ok", "an address of this host")
        else:
            yield Finding(
                f"{key} {endpoint}", "warning", "not an address of this host now", f"correct {key}, or add it"
            )


def _reverse_path(config: Config, proc: Path) -> Iterator[Finding]:
    """Check the reverse path filter: without it a packet from outside may claim an inside source, which pinholes and
    rules believe."""
    if not any(network.version == 4 for network in config.inside_networks):
        return
    conf = proc / "net/ipv4/conf"
    everywhere = _number(conf / "all/rp_filter")
    names = sorted(path.name for path in conf.iterdir() if path.name not in ("all", "default", "lo"))
    unfiltered = [name for name in names if max(everywhere, _number(conf / name / "rp_filter")) == 0]
    if unfiltered:
        yield Finding(
            "reverse path",
            "warning",
            f"a source address is not checked on {', '.join(unfiltered[:4])}{', ...' if len(unfiltered) > 4 else ''}",
            "sysctl -w net.ipv4.conf.all.rp_filter=1 (2 if there are several ways to the same network)",
        )
    else:
        yield Finding("reverse path", "ok", "source addresses are checked (rp_filter)")


def _port_range(config: Config, proc: Path) -> Finding:
    """Check the range of local ports: a port of a local connection cannot be a pinhole, and the reverse."""
    low, high = config.pinhole_ports
    first, last = map(int, (proc / "net/ipv4/ip_local_port_range").read_text().split())
    both = (max(low, first), min(high, last))
    reserved = _reserved((proc / "net/ipv4/ip_local_reserved_ports").read_text())
    if both[0] > both[1] or all(port in reserved for port in range(both[0], both[1] + 1)):
        return Finding("pinhole ports", "ok", f"{low}-{high} are not used for this host's own connections")
    return Finding(
        "pinhole ports",
        "warning",
        f"{both[0]}-{both[1]} are in ip_local_port_range ({first}-{last}) too: fewer may be free at times",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={low}-{high}",
    )


def _listening_ports(config: Config, proc: Path) -> Finding:
    """Check listening ports: a connection of this host may use a listener's port when the gateway starts, and for a
    minute after its end."""
    ports = {endpoint.port for endpoint in config.socks_listeners.values()}
    ports |= {parse_endpoint(config.console.listen).port} if config.console.listen else set()
    ports |= {config.transparent.port} if config.transparent_enabled else set()
    first, last = map(int, (proc / "net/ipv4/ip_local_port_range").read_text().split())
    reserved = _reserved((proc / "net/ipv4/ip_local_reserved_ports").read_text())
    both = sorted(port for port in ports if first <= port <= last and port not in reserved)
    if not both:
        return Finding("listening ports", "ok", "none is used for this host's own connections")
    low, high = config.pinhole_ports
    return Finding(
        "listening ports",
        "warning",
        f"{', '.join(map(str, both))} in ip_local_port_range ({first}-{last}): the kernel may give it to a connection"
        " of this host's own, and the start would have to wait",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join(map(str, both))},{low}-{high}",
    )


def _reserved(text: str) -> set[int]:
    ports: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def _flowtables(config: Config) -> Iterator[Finding]:
    """Check flowtables: an offloaded connection meets no rule, so messages are not read, and media do not end with
    their call."""
    ports = config.module_ports("udp")
    try:
        entries = ruleset()
    except AlgateError:  # without root nothing is known
        return
    tables = [entry["flowtable"] for entry in entries if "flowtable" in entry]
    if not tables or not config.packets_wanted:
        return
    where = ", ".join(f"{table['family']} {table['table']} {table['name']}" for table in tables)
    aside = any(
        (chain.get("table"), chain.get("name")) == (config.instance, "aside")
        for chain in (entry["chain"] for entry in entries if "chain" in entry)
    )
    only6 = aside and any(network.version == 6 for network in config.inside_networks)
    if aside and not only6:
        yield Finding("flow offload", "ok", f"{where}: SIP over UDP and media are kept out of it")
        return
    condition = f"ct mark and {ADMITTED | MEDIA:#x} == 0x0 ct original proto-dst != {{ {', '.join(map(str, ports))} }}"
    yield Finding(
        "flow offload",
        "warning",
        f"{where}: SIP over UDP{' over IPv6' if only6 else ''} is not read from the third packet on, and media do not"
        " end with their call",
        f"in each rule with `flow add`, before it: {condition}",
    )


def _other_translation(config: Config) -> Finding:
    """Check for rules of other programs that translate our traffic before we see it."""
    found = translators((*config.module_ports(), *config.transparent.ports), config.instance)
    if found:
        return Finding("other rules", "warning", "; ".join(found), "remove them, or the port from the configuration")
    if why := why_unseen():
        return Finding("other rules", "warning", f"not known: {why}", "run the doctor as root")
    return Finding("other rules", "ok", "no other rules translate these ports before ours")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0

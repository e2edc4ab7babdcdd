"""The configuration as frozen structs: every key with its type, its default and the description that docs/reference/
and the example file show; and what follows from the keys."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tomli_w
from msgspec import Meta

from alg.address import Endpoint
from alg.api import Mode
from gateway.config.schema_rules import DnsSection, Loaded, RuleSection, UpstreamSection
from gateway.model.requests import AuthName, Network, ProtocolName
from gateway.observe.log import LogSettings

DEFAULT_PATH = Path("/etc/algate/algate.toml")
DEFAULT_RUN_DIR = "/run/algate"
LOWEST_PINHOLE_PORT = 1024
LONGEST_LIFETIME = 604800
PCP_PORT = 5351
"""The port of PCP and NAT-PMP (RFC 6887 section 19.1, RFC 6886)."""
SSDP_PORT = 1900
"""The port of UPnP's discovery."""

_T = TypeVar("_T")

ProtectionName = Literal["none", "integrity", "confidentiality"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all tables of the file. An unknown key is an error."""


class NetworkSection(_Section, frozen=True):
    """The networks of the clients, and the address with which the outside sees them."""

    inside: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks whose hosts are inside: they are the clients that the gateway serves.",
            examples=[["192.168.56.0/24", "fd00:56::/64"]],
        ),
    ] = ()
    inside_interfaces: Annotated[
        tuple[str, ...],
        Meta(
            description="Interfaces whose traffic `algate rules` hands to the gateway, for unconfigured clients. "
            "Empty: none are served.",
            examples=[["eth1"]],
        ),
    ] = ()
    outside: Annotated[
        str,
        Meta(
            description='The public address to advertise in messages. "auto": the address with which the NAT sends '
            "the flow to its server."
        ),
    ] = "auto"
    masquerade: Annotated[
        tuple[Literal["ipv4", "ipv6"], ...],
        Meta(description="Address families for which `algate rules` adds a MASQUERADE rule for the inside networks."),
    ] = ()
    keepalive: Annotated[
        float,
        Meta(
            description="Seconds without data after which both ends of a relayed connection are probed (TCP "
            "keep-alive), so that routers on the way do not forget it and a dead end is found. 0: "
            "never."
        ),
    ] = 110.0
    nat64: Annotated[
        tuple[str, ...],
        Meta(
            description="Prefixes of a NAT64 of this network (RFC 6052), in addition to 64:ff9b::/96 and "
            "64:ff9b:1::/48. Rules for IPv4 addresses also apply to addresses of these prefixes.",
            examples=[["2001:db8:64::/96"]],
        ),
    ] = ()


class GssapiSection(_Section, frozen=True):
    """Kerberos, for `socks.auth` with "gssapi" (docs/how-to/socks-authentication.md)."""

    keytab: Annotated[str, Meta(description="The file with the keys of the service.")] = "/etc/krb5.keytab"
    service: Annotated[str, Meta(description="The service name for which clients ask for a ticket.")] = "rcmd"
    realm: Annotated[
        str,
        Meta(
            description="Users of this realm are known by their name alone, without `@REALM`.", examples=["EXAMPLE.COM"]
        ),
    ] = ""
    protection: Annotated[
        tuple[ProtectionName, ...], Meta(description="Levels of protection that are allowed, in order of preference.")
    ] = ("confidentiality", "integrity")
    nec: Annotated[
        bool, Meta(description="Accept a client that chooses its level in an unprotected message (NEC's form).")
    ] = False


class GuardSection(_Section, frozen=True):
    """Protection against the guessing of passwords."""

    failures: Annotated[
        int,
        Meta(
            description="Number of failed authentications within `window` after which a client is banned. 0: no "
            "client is ever banned."
        ),
    ] = 10
    window: Annotated[float, Meta(description="Seconds after which a failed authentication is forgotten.")] = 600.0
    ban: Annotated[float, Meta(description="Duration of a ban, in seconds.")] = 600.0


class TlsSection(_Section, frozen=True):
    """SOCKS and HTTP CONNECT inside TLS (docs/how-to/tls.md)."""

    listen: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses and ports at which clients connect by TLS. HTTP CONNECT is spoken there in any "
            "case, beside `socks.protocols`. []: there is no TLS.",
            examples=[["192.168.56.1:1443"]],
        ),
    ] = ()
    certificate: Annotated[
        str,
        Meta(
            description="The file with the certificate chain and its private key (PEM); changes take effect within "
            "seconds.",
            examples=["/etc/algate/proxy.pem"],
        ),
    ] = ""
    client_ca: Annotated[
        str,
        Meta(
            description="The file with the authorities of clients' certificates (PEM). Clients then need a "
            'certificate, and the common name of its subject is the user. "": no certificate is asked for.',
            examples=["/etc/algate/clients.pem"],
        ),
    ] = ""


class SocksSection(_Section, frozen=True):
    """The SOCKS server, for configured clients (docs/how-to/socks-clients.md, docs/how-to/socks-authentication.md)."""

    listen: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses and ports at which SOCKS clients connect. []: the SOCKS server is off.",
            examples=[["192.168.56.1:1080"]],
        ),
    ] = ("127.0.0.1:1080",)
    protocols: Annotated[
        tuple[ProtocolName, ...],
        Meta(
            description='What clients may speak at these addresses. "socks4": 4a too; "http": CONNECT, with passwords '
            "by Basic authentication.",
            examples=[["socks5", "http"]],
        ),
    ] = ("socks5", "socks4")
    auth: Annotated[
        tuple[AuthName, ...],
        Meta(description="Authentication methods, in order of preference.", examples=[["password"]]),
    ] = ("none",)
    users: Annotated[
        str,
        Meta(
            description="The file with user names, password hashes and groups. `algate passwd` writes it; changes "
            "take effect within seconds."
        ),
    ] = "/etc/algate/users"
    ident_timeout: Annotated[float, Meta(description="Seconds to wait for the answer of a client's ident server.")] = (
        3.0
    )
    gssapi: GssapiSection = GssapiSection()
    tls: TlsSection = TlsSection()
    guard: GuardSection = GuardSection()
    handshake_timeout: Annotated[float, Meta(description="Seconds that a client has for the whole handshake.")] = 10.0
    bind_timeout: Annotated[float, Meta(description="Seconds that a BIND request waits for its peer.")] = 120.0
    udp_answers: Annotated[
        Literal["strict", "open"],
        Meta(
            description='Which hosts may send to a UDP association. "strict": only the endpoints to which its '
            'client has sent; "open": all hosts.'
        ),
    ] = "strict"
    udp_fragments: Annotated[
        Literal["reassemble", "refuse"],
        Meta(
            description='What happens to datagrams in SOCKS fragments. "reassemble": they are put together; '
            '"refuse": they are dropped.'
        ),
    ] = "reassemble"
    udp_idle_timeout: Annotated[
        float,
        Meta(
            description="Seconds after which a UDP association ends if neither a datagram nor a media packet of its "
            "calls has passed."
        ),
    ] = 300.0
    access_file: Annotated[
        str,
        Meta(
            description="An access file of the classic sockd. It is asked for requests that no [[rule]] decides "
            "(docs/rules.md).",
            examples=["/etc/sockd.conf"],
        ),
    ] = ""
    access_masks: Annotated[
        Literal["inverted", "netmask"],
        Meta(
            description='How masks in the access file are written. "inverted": as in sockd before 4.2; "netmask": '
            "as in later versions."
        ),
    ] = "inverted"


class LogSection(_Section, frozen=True):
    """Where log lines go, and in which form (docs/log.md)."""

    target: Annotated[
        Literal["stderr", "syslog", "journald"],
        Meta(
            description='Where log lines go. "syslog": to the daemon that `syslog` names; "journald": to the '
            "journal, with each key as a field."
        ),
    ] = "stderr"
    syslog: Annotated[
        str,
        Meta(
            description="The socket of the local syslog daemon, or ADDRESS:PORT of a server (UDP, RFC 5424).",
            examples=["192.0.2.14:514"],
        ),
    ] = "/dev/log"
    format: Annotated[
        Literal["logfmt", "json", "console"],
        Meta(description='Form of the lines. "console" is meant for reading on a terminal.'),
    ] = "logfmt"
    connections: Annotated[bool, Meta(description="Whether the beginning and the end of each flow are logged.")] = True
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The lowest level that is written. Events of lower levels still count in the metrics."),
    ] = "debug"

    @property
    def settings(self) -> LogSettings:
        """The settings with which the log is set up. Raises ValueError where `syslog` is neither a path nor an
        endpoint."""
        syslog = self.syslog if self.target != "syslog" or self.syslog.startswith("/") else parse_endpoint(self.syslog)
        return LogSettings(self.target, syslog, self.format, self.connections, self.level)


class ConsoleSection(_Section, frozen=True):
    """The console: a page for the operator, /metrics, /healthz and /readyz (docs/how-to/console.md)."""

    listen: Annotated[
        str,
        Meta(
            description='Address and port of the console. "": the console is off. Beyond loopback everything but '
            "/healthz and /readyz requires the token.",
        ),
    ] = "127.0.0.1:9180"
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Further host names in requests that the console accepts, such as the name of a proxy in "
            "front of it.",
            examples=[["algate.example.net"]],
        ),
    ] = ()


class TransparentSection(_Section, frozen=True):
    """The front for unconfigured clients, whose connections iptables redirects."""

    port: Annotated[int, Meta(description="The port to which iptables redirects connections.")] = 10800
    ports: Annotated[
        tuple[int, ...],
        Meta(
            description="TCP ports of servers to redirect and relay, in addition to the ports of the modules.",
            examples=[[80, 443]],
        ),
    ] = ()
    datagram_rate: Annotated[
        float,
        Meta(
            description="Datagrams a second of one client that modules read, on average; half as many at once. "
            "Datagrams beyond that pass unread, without leaving the kernel. A host outside, which "
            "answers many clients, may send ten times as many."
        ),
    ] = 2000.0


class PublishSection(_Section, frozen=True):
    """A server inside that clients outside may reach. One table for each server. If `inside` has a port of a module,
    the module reads it."""

    outside: Annotated[
        str,
        Meta(
            description="Address and port of this router at which clients outside reach the server.",
            examples=["203.0.113.2:21"],
        ),
    ]
    inside: Annotated[
        str, Meta(description="Address and port of the server, in `network.inside`.", examples=["192.168.56.20:21"])
    ]
    protocol: Annotated[
        Literal["tcp", "udp"],
        Meta(
            description='"tcp": the gateway connects clients to the server. "udp": the kernel translates datagrams, '
            "and what the server sends from its port leaves from the outside port (a telephone "
            "exchange)."
        ),
    ] = "tcp"


class PortmapSection(_Section, frozen=True):
    """Clients inside ask for public ports by PCP, NAT-PMP or UPnP IGD (docs/protocols/portmap.md). Off by default."""

    protocols: Annotated[
        tuple[Literal["pcp", "natpmp", "upnp"], ...],
        Meta(
            description="Protocols by which clients may ask for public ports. []: this is off.",
            examples=[["pcp", "natpmp", "upnp"]],
        ),
    ] = ()
    ports: Annotated[
        str, Meta(description="Public ports that clients may get. Ports of this router's own services are excluded.")
    ] = "1024-65535"
    inside_ports: Annotated[str, Meta(description="Ports of clients that may be mapped.")] = "1024-65535"
    per_client: Annotated[int, Meta(description="Number of mappings that a client may have.")] = 32
    lifetime: Annotated[
        str,
        Meta(description="Shortest and longest lifetime, in seconds, that PCP and NAT-PMP grant. Clients renew them."),
    ] = "120-7200"
    permanent: Annotated[
        int,
        Meta(
            description="Longest lifetime that UPnP grants, in seconds. A mapping without an end that a client asks "
            "for by UPnP also lasts this long."
        ),
    ] = 604800
    igd: Annotated[
        Literal[1, 2],
        Meta(description="Version of the UPnP device that is announced. A search finds both."),
    ] = 1
    http_port: Annotated[
        int, Meta(description="TCP port, at inside addresses, of UPnP's descriptions and control.")
    ] = 2869
    upstream: Annotated[
        bool,
        Meta(
            description="Where the public address is a private one, so that another NAT is in front: ask the router "
            "above for each mapping too, by PCP, NAT-PMP or UPnP, and tell clients what that one gives."
        ),
    ] = False


class ForwardSection(_Section, frozen=True):
    """A public port that always leads to a server inside, in the kernel; no process reads what passes. One table for
    each port. (A server whose protocol a module has to read is published: `[[publish]]`.)"""

    outside: Annotated[
        str,
        Meta(
            description="Public address and port of this router. For IPv6 without translation: the server's own.",
            examples=["203.0.113.2:8443"],
        ),
    ]
    inside: Annotated[
        str, Meta(description="Address and port of the server, in `network.inside`.", examples=["192.168.56.20:443"])
    ]
    protocol: Annotated[Literal["tcp", "udp", "tcp+udp"], Meta(description="Transports that are forwarded.")] = "tcp"
    from_: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks outside that may use it, 8 at most. []: everybody.",
            examples=[["198.51.100.0/24"]],
        ),
    ] = msgspec.field(default=(), name="from")


class PinholeSection(_Section, frozen=True):
    """Pinholes: temporary public ports, each for one session of one inside client."""

    ports: Annotated[str, Meta(description="The range of public ports for pinholes.")] = "40000-49999"
    backend: Annotated[
        Literal["auto", "kernel", "userspace"],
        Meta(
            description='Where pinholes are opened. "auto": in the kernel for unconfigured clients, in userspace '
            "for SOCKS clients."
        ),
    ] = "auto"
    per_client: Annotated[
        int,
        Meta(
            description="Number of pinholes of each kind that a client may have open: connections, conversations (a "
            "call has one for each of its media), and sockets of UDP associations. What a client is: "
            "see `limits`."
        ),
    ] = 1024
    rate: Annotated[
        float,
        Meta(
            description="Number of pinholes that a client may open in a second, on average; twice as many at once. "
            "A request beyond that waits two seconds at most, and is then refused."
        ),
    ] = 500.0


class RulesSection(_Section, frozen=True):
    """The gateway's own rules in netfilter, beside those of other firewalls (docs/how-to/beside-firewalls.md). Not to
    be confused with `[[rule]]`."""

    restore: Annotated[
        bool,
        Meta(
            description="true: iptables rules and the nft table of pinholes, with all open pinholes, are restored "
            "when another program has removed them. false: the removal is only reported.",
        ),
    ] = True
    foreign: Annotated[
        Literal["ask", "add"],
        Meta(
            description='What to do about chains of other firewalls that drop what the gateway admits. "ask": '
            '`algate doctor` and `algate rules show --nft` print the missing lines; "add": `algate '
            "rules apply` adds them, and `remove` removes them.",
        ),
    ] = "ask"


class LimitsSection(_Section, frozen=True):
    """Limits on what one client may use at a time, counted over all workers. 0: no limit.

    A client is a host: all addresses of an inside host that have one link-layer address are one client; outside, a /64
    is one client. In addition, a client that has more than 256 of something gets another one only if more than that
    number is left. For pinholes see `pinhole.per_client`; modules limit messages themselves.
    """

    flows: Annotated[int, Meta(description="Relayed flows. A connection beyond that is closed when it arrives.")] = 8192
    handshakes: Annotated[
        int,
        Meta(
            description="Connections that are not relayed yet: in a handshake, being connected to the server, or "
            "read by a module."
        ),
    ] = 5120
    associations: Annotated[int, Meta(description="UDP associations. Each uses two ports.")] = 1024
    lookups: Annotated[int, Meta(description="Host names that are being resolved.")] = 256


class AlgSection(_Section, frozen=True):
    """One protocol module, by its name."""

    mode: Annotated[
        Mode,
        Meta(
            description='"rewrite": messages are edited and pinholes opened; "observe": it is only logged what '
            'would be edited; "off": the module is not used.'
        ),
    ] = Mode.REWRITE
    ports: Annotated[tuple[int, ...], Meta(description="Ports of servers that speak the protocol.")] = ()
    options: dict[str, Any] = {}  # the module's own keys; in the file they stand beside these
    transports: Annotated[
        tuple[Literal["tcp", "udp"], ...],
        Meta(description="Transports that the module reads. Default: all that it knows."),
    ] = ("tcp",)


class ProcessSection(_Section, frozen=True):
    """The processes of the gateway."""

    workers: Annotated[int, Meta(description="Number of worker processes. 0: one for each processor.")] = 0
    run_dir: Annotated[
        str,
        Meta(
            description="Directory for sockets and the lock file. Each instance on a host needs its own. Without "
            "root the default is $XDG_RUNTIME_DIR/algate."
        ),
    ] = DEFAULT_RUN_DIR
    user: Annotated[str, Meta(description="User that the workers run as.", examples=["algate"])] = "nobody"
    broker_user: Annotated[
        str, Meta(description="User that the broker and the packets process run as, with CAP_NET_ADMIN.")
    ] = "daemon"
    drain_timeout: Annotated[float, Meta(description="Seconds that flows may go on after SIGTERM.")] = 10.0
    retire_timeout: Annotated[
        float,
        Meta(
            description="Seconds that flows of the old processes may go on after an upgrade. New flows are served "
            "by the new processes."
        ),
    ] = 3600.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The whole configuration, valid once `load.load_config` has returned it."""

    network: NetworkSection = NetworkSection()
    socks: SocksSection = SocksSection()
    transparent: TransparentSection = TransparentSection()
    publish: tuple[PublishSection, ...] = ()
    forward: tuple[ForwardSection, ...] = ()
    portmap: PortmapSection = PortmapSection()
    pinhole: PinholeSection = PinholeSection()
    rules: RulesSection = RulesSection()
    limits: LimitsSection = LimitsSection()
    alg: dict[str, AlgSection] = {}
    process: ProcessSection = ProcessSection()
    log: LogSection = LogSection()
    console: ConsoleSection = ConsoleSection()
    dns: DnsSection = DnsSection()
    rule: tuple[RuleSection, ...] = ()
    upstream: tuple[UpstreamSection, ...] = ()
    loaded: Loaded = Loaded()  # not of the file itself

    @cached_property
    def inside_networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(text) for text in self.network.inside)

    @cached_property
    def nat64_prefixes(self) -> tuple[ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.IPv6Network(text) for text in self.network.nat64)

    @cached_property
    def socks_listeners(self) -> dict[str, Endpoint]:
        """Where SOCKS clients connect, with TLS and without, by the key that says so."""
        keys = {f"socks.listen[{i}]": text for i, text in enumerate(self.socks.listen)}
        keys |= {f"socks.tls.listen[{i}]": text for i, text in enumerate(self.socks.tls.listen)}
        return {key: parse_endpoint(text) for key, text in keys.items()}

    @cached_property
    def pinhole_ports(self) -> tuple[int, int]:
        """The lowest and the highest public port of pinholes."""
        return port_range(self.pinhole.ports)

    @cached_property
    def published(self) -> dict[Endpoint, Endpoint]:
        """Published TCP servers: the server's endpoint by the endpoint of this router at which clients outside reach
        it."""
        return {
            parse_endpoint(entry.outside): parse_endpoint(entry.inside)
            for entry in self.publish
            if entry.protocol == "tcp"
        }

    @cached_property
    def published_datagrams(self) -> dict[Endpoint, Endpoint]:
        """Published UDP servers: the endpoint of this router by the server's own endpoint."""
        return {
            parse_endpoint(entry.inside): parse_endpoint(entry.outside)
            for entry in self.publish
            if entry.protocol == "udp"
        }

    @cached_property
    def portmap_wanted(self) -> bool:
        """Whether clients may ask for public ports, so that the portmap process is needed."""
        return bool(self.portmap.protocols) and self.transparent_enabled and self.broker_wanted

    @cached_property
    def portmap_ports(self) -> dict[Literal["tcp", "udp"], tuple[int, ...]]:
        """The ports, at inside addresses, at which clients ask for public ports."""
        asked = self.portmap.protocols if self.portmap_wanted else ()
        udp = ((PCP_PORT,) if {"pcp", "natpmp"} & {*asked} else ()) + ((SSDP_PORT,) if "upnp" in asked else ())
        return {"tcp": (self.portmap.http_port,) if "upnp" in asked else (), "udp": udp}

    @cached_property
    def transparent_enabled(self) -> bool:
        """Whether iptables can hand over traffic: there are inside interfaces."""
        return bool(self.network.inside_interfaces)

    @cached_property
    def broker_wanted(self) -> bool:
        """Whether a broker is needed: pinholes are opened in the kernel."""
        if self.pinhole.backend == "kernel":
            return True
        return self.transparent_enabled and self.pinhole.backend == "auto"

    @cached_property
    def instance(self) -> str:
        """Name of this instance in netfilter; several instances on one host have several run_dirs."""
        if self.process.run_dir == DEFAULT_RUN_DIR:
            return "algate"
        return "algate-" + hashlib.sha256(self.process.run_dir.encode()).hexdigest()[:6]

    @cached_property
    def worker_count(self) -> int:
        return self.process.workers or len(os.sched_getaffinity(0))

    @cached_property
    def packets_wanted(self) -> bool:
        """Whether the packets process is needed: a module reads UDP, and there are a broker and interfaces whose
        packets can be queued."""
        return self.transparent_enabled and self.broker_wanted and bool(self.module_ports("udp"))

    @cached_property
    def read_ports(self) -> tuple[int, int] | None:
        """The highest eighth of the pinhole ports, whose datagrams a module reads, as (lowest, highest). None if no
        module reads UDP."""
        low, high = self.pinhole_ports
        return (high - (high - low) // 8, high) if self.packets_wanted else None

    @cached_property
    def queue(self) -> int:
        """The number of this instance's NFQUEUE. Each instance on a host has its own."""
        return 1024 + int(hashlib.sha256(self.instance.encode()).hexdigest()[:8], 16) % 64000

    @cached_property
    def early_queue(self) -> int:
        """Number of the NFQUEUE for media packets that come before their sender is let in."""
        return 65024 + int(hashlib.sha256(self.instance.encode()).hexdigest()[:8], 16) % 511

    def module_ports(self, transport: Literal["tcp", "udp"] = "tcp") -> tuple[int, ...]:
        """Ports of all modules that are not off and read this transport, ascending."""
        active = (s for s in self.alg.values() if s.mode is not Mode.OFF and transport in s.transports)
        return tuple(sorted({port for section in active for port in section.ports}))

    def datagram_sections(self) -> dict[str, AlgSection]:
        """The sections of the modules that read datagrams, by name."""
        return {
            name: section
            for name, section in self.alg.items()
            if section.mode is not Mode.OFF and "udp" in section.transports
        }

    def module_of(self, port: int, transport: Literal["tcp", "udp"] = "tcp") -> tuple[str, AlgSection] | None:
        """Name and section of the module that reads a server's port; None if there is none or it is off."""
        for name, section in self.alg.items():
            if section.mode is not Mode.OFF and port in section.ports and transport in section.transports:
                return name, section
        return None

    def to_toml(self) -> str:
        """The effective configuration as a TOML document."""
        document = msgspec.to_builtins(self)
        for section in document["alg"].values():
            section.update(section.pop("options"))
        del document["loaded"]
        return tomli_w.dumps(document)


def parse_endpoint(text: str) -> Endpoint:
    """Parse "192.0.2.1:1080" or "[2001:db8::1]:1080". Raises ValueError with a message that can be shown."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not ADDRESS:PORT (an IPv6 address in brackets)")
    host = found[1] if found[1] is not None else found[2]
    return Endpoint.of(host, int(found[3]))


def lifetime_range(text: str) -> tuple[int, int]:
    """Parse "120-7200", the shortest and the longest lifetime in seconds. Raises ValueError with what is wrong."""
    found = re.fullmatch(r"(\d{1,7})-(\d{1,7})", text)
    if not found:
        raise ValueError(f"{text!r} is not SHORTEST-LONGEST, in seconds")
    low, high = int(found[1]), int(found[2])
    if not 1 <= low <= high <= LONGEST_LIFETIME:
        raise ValueError(f"{text!r} is not a range within 1-{LONGEST_LIFETIME} seconds")
    return low, high


def port_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not LOWEST-HIGHEST")
    low, high = int(found[1]), int(found[2])
    if not LOWEST_PINHOLE_PORT <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a range within {LOWEST_PINHOLE_PORT}-65535")
    return low, high

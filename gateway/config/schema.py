"""The configuration as frozen structs: what there is to configure, and what follows from it."""

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
from gateway.model.requests import Network
from gateway.observe.log import LogSettings

DEFAULT_PATH = Path("/etc/algate/algate.toml")
DEFAULT_RUN_DIR = "/run/algate"
LOWEST_PINHOLE_PORT = 1024

_T = TypeVar("_T")

AuthName = Literal["none", "ident", "password", "gssapi"]
ProtectionName = Literal["none", "integrity", "confidentiality"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are errors."""


class NetworkSection(_Section, frozen=True):
    """Who is inside, and what the outside sees of it."""

    inside: Annotated[
        tuple[str, ...],
        Meta(description="Networks whose hosts are clients.", examples=[["192.168.56.0/24", "fd00:56::/64"]]),
    ] = ()
    inside_interfaces: Annotated[
        tuple[str, ...],
        Meta(
            description="Interfaces on which `algate rules` catches unconfigured clients; empty: none are served.",
            examples=[["eth1"]],
        ),
    ] = ()
    outside: Annotated[
        str, Meta(description='The public address to advertise; "auto": the local address that faces the server.')
    ] = "auto"
    masquerade: Annotated[
        tuple[Literal["ipv4", "ipv6"], ...],
        Meta(description="Families for which `algate rules` adds a MASQUERADE rule for inside networks."),
    ] = ()
    keepalive: Annotated[
        float,
        Meta(
            description="Seconds of silence after which both ends of a relayed connection are probed (TCP keep-alive), "
            "so that no router on the way forgets it, and an end that is gone is found; 0: never."
        ),
    ] = 110.0
    nat64: Annotated[
        tuple[str, ...],
        Meta(
            description="Prefixes of a NAT64 of this network (RFC 6052), beside 64:ff9b::/96 and 64:ff9b:1::/48: rules "
            "judge the IPv4 addresses behind them too.",
            examples=[["2001:db8:64::/96"]],
        ),
    ] = ()


class GssapiSection(_Section, frozen=True):
    """Kerberos: for `socks.auth` with "gssapi" (docs/how-to/socks-authentication.md)."""

    keytab: Annotated[str, Meta(description="Keys of the service.")] = "/etc/krb5.keytab"
    service: Annotated[str, Meta(description="The service that clients ask for a ticket for.")] = "rcmd"
    realm: Annotated[str, Meta(description="Users of this realm are known without it.", examples=["EXAMPLE.COM"])] = ""
    protection: Annotated[
        tuple[ProtectionName, ...], Meta(description="Levels that are allowed, in order of preference.")
    ] = ("confidentiality", "integrity")
    nec: Annotated[bool, Meta(description="Accept the choice of a level that has no protection of its own.")] = False


class GuardSection(_Section, frozen=True):
    """Against the guessing of passwords."""

    failures: Annotated[
        int, Meta(description="Failed authentications within the window that ban an address; 0: none is banned.")
    ] = 10
    window: Annotated[float, Meta(description="Seconds after which failures are forgotten.")] = 600.0
    ban: Annotated[float, Meta(description="Seconds that a ban lasts.")] = 600.0


class SocksSection(_Section, frozen=True):
    """The SOCKS server, for configured clients (docs/how-to/socks-clients.md, docs/how-to/socks-authentication.md)."""

    listen: Annotated[
        tuple[str, ...],
        Meta(description="Where SOCKS clients connect; []: nowhere.", examples=[["192.168.56.1:1080"]]),
    ] = ("127.0.0.1:1080",)
    auth: Annotated[
        tuple[AuthName, ...],
        Meta(description="Methods that say who a client is, in order of preference.", examples=[["password"]]),
    ] = ("none",)
    users: Annotated[
        str,
        Meta(description="Names, password hashes and groups; `algate passwd` writes it, changes are taken up at once."),
    ] = "/etc/algate/users"
    ident_timeout: Annotated[float, Meta(description="Seconds for a client's ident server to answer.")] = 3.0
    gssapi: GssapiSection = GssapiSection()
    guard: GuardSection = GuardSection()
    handshake_timeout: Annotated[float, Meta(description="Seconds for a whole handshake.")] = 10.0
    bind_timeout: Annotated[float, Meta(description="Seconds that a BIND waits for its peer.")] = 120.0
    udp_answers: Annotated[
        Literal["strict", "open"],
        Meta(
            description='Who may send to a UDP association. "strict": whom its client has written to; "open": anybody.'
        ),
    ] = "strict"
    udp_fragments: Annotated[
        Literal["reassemble", "refuse"],
        Meta(description='SOCKS fragments of datagrams. "reassemble": put them together; "refuse": drop them.'),
    ] = "reassemble"
    udp_idle_timeout: Annotated[
        float,
        Meta(description="Seconds without a datagram, or a packet of media of its calls, that end a UDP association."),
    ] = 300.0
    access_file: Annotated[
        str,
        Meta(
            description="An access file of the classic sockd, asked after the rules (docs/rules.md).",
            examples=["/etc/sockd.conf"],
        ),
    ] = ""
    access_masks: Annotated[
        Literal["inverted", "netmask"],
        Meta(description='Its masks. "inverted": as sockd before 4.2 has them; "netmask": as later ones.'),
    ] = "inverted"


class LogSection(_Section, frozen=True):
    """Where log lines go, and in which form (docs/log.md)."""

    target: Annotated[
        Literal["stderr", "syslog", "journald"],
        Meta(description='Where lines go. "syslog": see `syslog`; "journald": there each key is a field.'),
    ] = "stderr"
    syslog: Annotated[
        str,
        Meta(
            description="The socket of the local syslog daemon, or ADDRESS:PORT of a server (UDP, RFC 5424).",
            examples=["192.0.2.14:514"],
        ),
    ] = "/dev/log"
    format: Annotated[
        Literal["logfmt", "json", "console"], Meta(description='Their form. "console" is for the eye.')
    ] = "logfmt"
    connections: Annotated[bool, Meta(description="Whether a flow's begin and end have a line each.")] = True
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Lines of a lower level are not written. What they count is counted all the same."),
    ] = "debug"

    @property
    def settings(self) -> LogSettings:
        """What the log is set up with. Raises ValueError where `syslog` is neither a path nor an endpoint."""
        syslog = self.syslog if self.target != "syslog" or self.syslog.startswith("/") else parse_endpoint(self.syslog)
        return LogSettings(self.target, syslog, self.format, self.connections, self.level)


class ConsoleSection(_Section, frozen=True):
    """The console: a page for the operator, /metrics, /healthz and /readyz (docs/how-to/console.md)."""

    listen: Annotated[
        str,
        Meta(
            description='Address and port of the console; "": there is none. Beyond loopback everything but the health '
            "asks for the token.",
        ),
    ] = "127.0.0.1:9180"
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Further names by which a browser may ask for it, as that of a proxy in front of it.",
            examples=[["algate.example.net"]],
        ),
    ] = ()


class TransparentSection(_Section, frozen=True):
    """The front for unconfigured clients, whose connections iptables redirects."""

    port: Annotated[int, Meta(description="Where redirected connections arrive.")] = 10800
    ports: Annotated[
        tuple[int, ...],
        Meta(description="Further TCP ports to relay, beside those of the modules.", examples=[[80, 443]]),
    ] = ()
    datagram_rate: Annotated[
        float,
        Meta(
            description="Datagrams a second of one client that modules read, on average; half as many at once. What is "
            "more passes unread: the kernel does not even show it. A host outside, which answers many clients, has ten "
            "times as much."
        ),
    ] = 2000.0


class PublishSection(_Section, frozen=True):
    """A server inside that clients outside may reach, once for each; with a port of a module it is inspected."""

    outside: Annotated[
        str,
        Meta(
            description="Address and port of this router at which clients outside find it.",
            examples=["203.0.113.2:21"],
        ),
    ]
    inside: Annotated[str, Meta(description="The server itself, in `network.inside`.", examples=["192.168.56.20:21"])]
    protocol: Annotated[
        Literal["tcp", "udp"],
        Meta(
            description='"tcp": clients are connected to the server by the gateway. "udp": datagrams are translated by '
            "the kernel, and what the server sends from its port leaves from the outside one (a telephone exchange)."
        ),
    ] = "tcp"


class PinholeSection(_Section, frozen=True):
    """Temporary public endpoints, each for one session of one inside client."""

    ports: Annotated[str, Meta(description="Public ports that pinholes may use.")] = "40000-49999"
    backend: Annotated[
        Literal["auto", "kernel", "userspace"],
        Meta(description='Who opens them. "auto": the kernel for unconfigured clients, userspace for SOCKS clients.'),
    ] = "auto"
    per_client: Annotated[
        int,
        Meta(
            description="How many pinholes of each kind a client may have open: connections, conversations (a call has "
            "one for each of its media), and sockets of UDP associations. See `limits` for what a client is."
        ),
    ] = 1024
    rate: Annotated[
        float,
        Meta(
            description="How many pinholes a client may open in a second, on average; twice as many at once. Beyond "
            "that it waits, at most two seconds for each."
        ),
    ] = 500.0


class RulesSection(_Section, frozen=True):
    """The rules in netfilter, beside those of other firewalls (docs/how-to/beside-firewalls.md). Not `[[rule]]`."""

    restore: Annotated[
        bool,
        Meta(
            description="Put back what somebody else has removed: applied iptables rules, and the table of pinholes "
            "with all that is open. false: it is only reported.",
        ),
    ] = True
    foreign: Annotated[
        Literal["ask", "add"],
        Meta(
            description='Chains of other firewalls that drop what the gateway admits. "ask": `algate doctor` and '
            '`algate rules show --nft` print the lines that are missing; "add": `algate rules apply` adds them, and '
            "`remove` takes them away.",
        ),
    ] = "ask"


class LimitsSection(_Section, frozen=True):
    """What one client may have at a time of what all clients share, counted over all workers; 0: as much as it likes.

    A client is a host: the addresses of an inside host that the router sees with one link-layer address are one client,
    and outside a /64 is. Beside these numbers a client that has more than 256 of something may not have more than what
    is left for all others. For pinholes see `pinhole.per_client`, for messages the modules.
    """

    flows: Annotated[int, Meta(description="Relayed flows. A connection beyond that is closed where it arrives.")] = (
        8192
    )
    handshakes: Annotated[
        int,
        Meta(description="Connections that are not relayed yet: in a handshake, being connected, or read by a module."),
    ] = 5120
    associations: Annotated[int, Meta(description="UDP associations; each takes two ports.")] = 1024
    lookups: Annotated[int, Meta(description="Names that are being resolved.")] = 256


class AlgSection(_Section, frozen=True):
    """One protocol module, by its name."""

    mode: Annotated[
        Mode, Meta(description='"rewrite": edit what must change; "observe": only say what would change; "off".')
    ] = Mode.REWRITE
    ports: Annotated[tuple[int, ...], Meta(description="Server ports that speak the protocol.")] = ()
    options: dict[str, Any] = {}  # the module's own keys; in the file they stand beside these
    transports: Annotated[
        tuple[Literal["tcp", "udp"], ...],
        Meta(description="Which of them are read; without the key all that the module knows."),
    ] = ("tcp",)


class ProcessSection(_Section, frozen=True):
    """The processes of the gateway."""

    workers: Annotated[int, Meta(description="Worker processes; 0: one per core.")] = 0
    run_dir: Annotated[
        str,
        Meta(
            description="Sockets and lock; another one for each instance on a host. Without root the default is "
            "$XDG_RUNTIME_DIR/algate."
        ),
    ] = DEFAULT_RUN_DIR
    user: Annotated[str, Meta(description="Whom the workers run as.", examples=["algate"])] = "nobody"
    broker_user: Annotated[
        str, Meta(description="Whom the broker and the packets process run as, with CAP_NET_ADMIN.")
    ] = "daemon"
    drain_timeout: Annotated[float, Meta(description="Seconds that flows get to end after SIGTERM.")] = 10.0
    retire_timeout: Annotated[
        float, Meta(description="Seconds that flows get to end after an upgrade; new ones have new processes.")
    ] = 3600.0


# A module's section need not name its ports; those of a third party's module must.
DEFAULT_ALG = {"ftp": AlgSection(ports=(21,)), "sip": AlgSection(ports=(5060,), transports=("tcp", "udp"))}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The whole configuration, valid once `load.load_config` has returned it."""

    network: NetworkSection = NetworkSection()
    socks: SocksSection = SocksSection()
    transparent: TransparentSection = TransparentSection()
    publish: tuple[PublishSection, ...] = ()
    pinhole: PinholeSection = PinholeSection()
    rules: RulesSection = RulesSection()
    limits: LimitsSection = LimitsSection()
    alg: dict[str, AlgSection] = msgspec.field(default_factory=lambda: dict(DEFAULT_ALG))
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
    def pinhole_ports(self) -> tuple[int, int]:
        """Lowest and highest public port of a pinhole."""
        return port_range(self.pinhole.ports)

    @cached_property
    def published(self) -> dict[Endpoint, Endpoint]:
        """Servers inside, by the endpoint of this router at which the outside finds them."""
        return {
            parse_endpoint(entry.outside): parse_endpoint(entry.inside)
            for entry in self.publish
            if entry.protocol == "tcp"
        }

    @cached_property
    def published_datagrams(self) -> dict[Endpoint, Endpoint]:
        """Sockets of UDP inside that the outside finds at an endpoint of this router, with that endpoint."""
        return {
            parse_endpoint(entry.inside): parse_endpoint(entry.outside)
            for entry in self.publish
            if entry.protocol == "udp"
        }

    @cached_property
    def transparent_enabled(self) -> bool:
        """Whether iptables can hand over traffic at all: there are inside interfaces."""
        return bool(self.network.inside_interfaces)

    @cached_property
    def broker_wanted(self) -> bool:
        """Whether anything privileged is configured: kernel pinholes for inside clients."""
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
        """Whether a module reads UDP in the packet path: it needs the broker, and interfaces to catch packets on."""
        return self.transparent_enabled and self.broker_wanted and bool(self.module_ports("udp"))

    @cached_property
    def read_ports(self) -> tuple[int, int] | None:
        """Those of the pinhole ports whose datagrams a module reads, the highest eighth; None: no module reads UDP."""
        low, high = self.pinhole_ports
        return (high - (high - low) // 8, high) if self.packets_wanted else None

    @cached_property
    def queue(self) -> int:
        """Number of the instance's NFQUEUE, unlike that of another instance."""
        return 1024 + int(hashlib.sha256(self.instance.encode()).hexdigest()[:8], 16) % 64000

    @cached_property
    def early_queue(self) -> int:
        """Number of the NFQUEUE for media that come before their sender is let in."""
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
        """Name and section of the module that is responsible for a server's port, unless it is off."""
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
    """ "192.0.2.1:1080" or "[2001:db8::1]:1080" as an Endpoint. ValueError says what is wrong."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not ADDRESS:PORT (an IPv6 address in brackets)")
    host = found[1] if found[1] is not None else found[2]
    return Endpoint.of(host, int(found[3]))


def port_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not LOWEST-HIGHEST")
    low, high = int(found[1]), int(found[2])
    if not LOWEST_PINHOLE_PORT <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a range within {LOWEST_PINHOLE_PORT}-65535")
    return low, high

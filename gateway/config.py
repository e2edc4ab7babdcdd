"""The configuration as frozen structs: what there is to configure, and what follows from it."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import tomli_w

from alg.address import Endpoint
from alg.api import Mode
from gateway.config_rules import DnsSection, Loaded, RuleSection, UpstreamSection

DEFAULT_PATH = Path("/etc/algate/algate.toml")
DEFAULT_RUN_DIR = "/run/algate"
LOWEST_PINHOLE_PORT = 1024

_T = TypeVar("_T")

AuthName = Literal["none", "ident", "password", "gssapi"]
ProtectionName = Literal["none", "integrity", "confidentiality"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are errors."""


class NetworkSection(_Section, frozen=True):
    inside: tuple[str, ...] = ()
    inside_interfaces: tuple[str, ...] = ()
    outside: str = "auto"
    masquerade: tuple[Literal["ipv4", "ipv6"], ...] = ()


class GssapiSection(_Section, frozen=True):
    keytab: str = "/etc/krb5.keytab"
    service: str = "rcmd"
    realm: str = ""
    protection: tuple[ProtectionName, ...] = ("confidentiality", "integrity")
    nec: bool = False


class GuardSection(_Section, frozen=True):
    failures: int = 10
    window: float = 600.0
    ban: float = 600.0


class SocksSection(_Section, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:1080",)
    auth: tuple[AuthName, ...] = ("none",)
    users: str = "/etc/algate/users"
    ident_timeout: float = 3.0
    gssapi: GssapiSection = GssapiSection()
    guard: GuardSection = GuardSection()
    handshake_timeout: float = 10.0
    bind_timeout: float = 120.0
    udp_answers: Literal["strict", "open"] = "strict"
    udp_fragments: Literal["reassemble", "refuse"] = "reassemble"
    udp_idle_timeout: float = 300.0
    access_file: str = ""
    access_masks: Literal["inverted", "netmask"] = "inverted"


class LogSection(_Section, frozen=True):
    target: Literal["stderr", "syslog", "journald"] = "stderr"
    format: Literal["logfmt", "json", "console"] = "logfmt"


class TransparentSection(_Section, frozen=True):
    port: int = 10800
    ports: tuple[int, ...] = ()


class PublishSection(_Section, frozen=True):
    outside: str
    inside: str


class PinholeSection(_Section, frozen=True):
    ports: str = "40000-49999"
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    per_client: int = 64
    rate: float = 100.0


class AlgSection(_Section, frozen=True):
    mode: Mode = Mode.REWRITE
    ports: tuple[int, ...] = ()
    options: dict[str, Any] = {}  # the module's own keys; in the file they stand beside these
    transports: tuple[Literal["tcp", "udp"], ...] = ("tcp",)


class ProcessSection(_Section, frozen=True):
    workers: int = 0
    run_dir: str = DEFAULT_RUN_DIR
    user: str = "nobody"
    broker_user: str = "daemon"
    drain_timeout: float = 10.0


# A module's section need not name its ports; those of a third party's module must.
DEFAULT_ALG = {"ftp": AlgSection(ports=(21,)), "sip": AlgSection(ports=(5060,), transports=("tcp", "udp"))}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The whole configuration, valid once `config_file.load_config` has returned it."""

    network: NetworkSection = NetworkSection()
    socks: SocksSection = SocksSection()
    transparent: TransparentSection = TransparentSection()
    publish: tuple[PublishSection, ...] = ()
    pinhole: PinholeSection = PinholeSection()
    alg: dict[str, AlgSection] = msgspec.field(default_factory=lambda: dict(DEFAULT_ALG))
    process: ProcessSection = ProcessSection()
    log: LogSection = LogSection()
    dns: DnsSection = DnsSection()
    rule: tuple[RuleSection, ...] = ()
    upstream: tuple[UpstreamSection, ...] = ()
    loaded: Loaded = Loaded()  # not of the file itself

    @cached_property
    def inside_networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(text) for text in self.network.inside)

    @cached_property
    def pinhole_ports(self) -> tuple[int, int]:
        """Lowest and highest public port of a pinhole."""
        return port_range(self.pinhole.ports)

    @cached_property
    def published(self) -> dict[Endpoint, Endpoint]:
        """Servers inside, by the endpoint of this router at which the outside finds them."""
        return {parse_endpoint(entry.outside): parse_endpoint(entry.inside) for entry in self.publish}

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

    def module_ports(self, transport: Literal["tcp", "udp"] = "tcp") -> tuple[int, ...]:
        """Ports of all modules that are not off and read this transport, ascending."""
        active = (s for s in self.alg.values() if s.mode is not Mode.OFF and transport in s.transports)
        return tuple(sorted({port for section in active for port in section.ports}))

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

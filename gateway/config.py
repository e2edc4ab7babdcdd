"""The configuration: TOML in, frozen structs out. Every error names the file and the line or key path."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import tomli_w

from alg.address import Endpoint
from alg.api import Mode
from alg.registry import modules
from gateway.errors import ConfigError

DEFAULT_PATH = Path("/etc/algate/algate.toml")
DEFAULT_RUN_DIR = "/run/algate"
LOWEST_PINHOLE_PORT = 1024

_T = TypeVar("_T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are errors."""


class NetworkSection(_Section, frozen=True):
    inside: tuple[str, ...] = ()
    inside_interfaces: tuple[str, ...] = ()
    outside: str = "auto"
    masquerade: tuple[Literal["ipv4", "ipv6"], ...] = ()


class SocksSection(_Section, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:1080",)
    auth: tuple[Literal["none"], ...] = ("none",)
    handshake_timeout: float = 10.0


class TransparentSection(_Section, frozen=True):
    port: int = 10800
    ports: tuple[int, ...] = ()


class PinholeSection(_Section, frozen=True):
    ports: str = "40000-49999"
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    per_client: int = 64


class AlgSection(_Section, frozen=True):
    mode: Mode = Mode.REWRITE
    ports: tuple[int, ...] = ()


class ProcessSection(_Section, frozen=True):
    workers: int = 0
    run_dir: str = DEFAULT_RUN_DIR
    user: str = "nobody"
    broker_user: str = "daemon"
    drain_timeout: float = 10.0


# A module's section need not name its ports; those of a third party's module must.
DEFAULT_ALG = {"ftp": AlgSection(ports=(21,))}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The whole configuration, valid once `load_config` has returned it."""

    network: NetworkSection = NetworkSection()
    socks: SocksSection = SocksSection()
    transparent: TransparentSection = TransparentSection()
    pinhole: PinholeSection = PinholeSection()
    alg: dict[str, AlgSection] = msgspec.field(default_factory=lambda: dict(DEFAULT_ALG))
    process: ProcessSection = ProcessSection()

    @cached_property
    def inside_networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(text) for text in self.network.inside)

    @cached_property
    def pinhole_ports(self) -> tuple[int, int]:
        """Lowest and highest public port of a pinhole."""
        return _port_range(self.pinhole.ports)

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

    def module_ports(self) -> tuple[int, ...]:
        """TCP ports of all modules that are not off, ascending."""
        active = (section for section in self.alg.values() if section.mode is not Mode.OFF)
        return tuple(sorted({port for section in active for port in section.ports}))

    def module_of(self, port: int) -> tuple[str, AlgSection] | None:
        """Name and section of the module that is responsible for a server's port, unless it is off."""
        for name, section in self.alg.items():
            if section.mode is not Mode.OFF and port in section.ports:
                return name, section
        return None

    def to_toml(self) -> str:
        """The effective configuration as a TOML document."""
        return tomli_w.dumps(msgspec.to_builtins(self))


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a configuration file.

    Without `path`: /etc/algate/algate.toml if there is one, else the defaults (SOCKS on loopback). Raises ConfigError.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return parse_config("", "default configuration")
        path = DEFAULT_PATH
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """Validate a TOML document; `source` names it in errors. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"\(at line (\d+), column (\d+)\)", message)
        lines = text.splitlines() or [""]
        line, column = (found[1], found[2]) if found else (len(lines), len(lines[-1]) + 1)  # "at end of document"
        where = f"{source}:{line}:{column}"
        raise ConfigError(f"{where}: {message.split(' (at ')[0]}") from error
    try:
        config = _convert(_with_defaults(document), Config)
        _check(config)
    except _BadValue as error:
        raise ConfigError(f"{source}: {error}") from error
    return config


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what a default depends on: a module's ports, a run_dir that this user can make."""
    if isinstance(document.get("alg", {}), dict):
        sections = {name: msgspec.to_builtins(section) for name, section in DEFAULT_ALG.items()}
        for name, section in document.get("alg", {}).items():
            sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
            _convert(sections[name], AlgSection, f"alg.{name}")  # of a mapping msgspec would not name the key
        document["alg"] = sections
    process = document.setdefault("process", {})
    if isinstance(process, dict) and "run_dir" not in process and os.geteuid() != 0:
        base = os.environ.get("XDG_RUNTIME_DIR")
        process["run_dir"] = f"{base}/algate" if base else f"/tmp/algate-{os.geteuid()}"  # noqa: S108  checked when made
    return document


def _convert(value: Any, kind: type[_T], prefix: str = "") -> _T:
    """`value` as a `kind`. _BadValue names the key, below `prefix`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _BadValue(_readable(str(error), prefix)) from error


def _readable(message: str, prefix: str) -> str:
    """msgspec's message in our form: "Expected ... - at `$.a.b`" becomes "a.b: expected ..."."""
    text, _, path = message.partition(" - at `")
    key = prefix + path.rstrip("`").removeprefix("$")
    key = key.removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        return f"{key + '.' if key else ''}{unknown[1]}: unknown key"
    text = text[0].lower() + text[1:]
    return f"{key}: {text}" if key else text


class _BadValue(Exception):
    """A value of the right type that makes no sense; the message begins with its key path."""


def _check(config: Config) -> None:
    network = config.network
    for i, text in enumerate(network.inside):
        _valid(f"network.inside[{i}]", text, ipaddress.ip_network)
    for i, name in enumerate(network.inside_interfaces):
        if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}\+?", name):
            raise _BadValue(f"network.inside_interfaces[{i}]: {name!r} is not the name of an interface")
    if network.inside_interfaces and not network.inside:
        raise _BadValue("network.inside: must name the inside networks, as network.inside_interfaces is set")
    if network.outside != "auto":
        _valid("network.outside", network.outside, ipaddress.ip_address)
    if not config.socks.listen and not config.transparent_enabled:
        raise _BadValue("socks.listen: is empty and network.inside_interfaces too: there is nothing to do")
    for i, text in enumerate(config.socks.listen):
        _valid(f"socks.listen[{i}]", text, parse_endpoint)
    if not config.socks.auth:
        raise _BadValue("socks.auth: must name at least one method")
    _positive("socks.handshake_timeout", config.socks.handshake_timeout)
    _ports("transparent.port", [config.transparent.port])
    _ports("transparent.ports", config.transparent.ports)
    low, high = _valid("pinhole.ports", config.pinhole.ports, _port_range)
    if config.transparent_enabled and low <= config.transparent.port <= high:
        raise _BadValue(f"pinhole.ports: {config.pinhole.ports} contains transparent.port {config.transparent.port}")
    _positive("pinhole.per_client", config.pinhole.per_client)
    if config.pinhole.backend == "kernel" and not network.inside:
        raise _BadValue("pinhole.backend: kernel pinholes lead to inside clients, and network.inside is empty")
    _check_alg(config)
    if config.process.workers < 0:
        raise _BadValue(f"process.workers: {config.process.workers} is negative (0: one per core)")
    if not config.process.run_dir.startswith("/"):
        raise _BadValue(f"process.run_dir: {config.process.run_dir!r} is not an absolute path")
    if config.process.drain_timeout < 0:
        raise _BadValue(f"process.drain_timeout: {config.process.drain_timeout:g} is negative")


def _check_alg(config: Config) -> None:
    known = modules()
    owner: dict[int, str] = {}
    for name, section in config.alg.items():
        if name not in known:
            raise _BadValue(f"alg.{name}: no such protocol module (installed: {', '.join(sorted(known))})")
        _ports(f"alg.{name}.ports", section.ports)
        for port in section.ports:
            if owner.setdefault(port, name) != name:
                raise _BadValue(f"alg.{name}.ports: port {port} belongs to alg.{owner[port]} already")


def _valid(key: str, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise _BadValue(f"{key}: {error}") from error


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise _BadValue(f"{key}: {value:g} is not greater than 0")


def _ports(key: str, ports: Iterable[int]) -> None:
    for port in ports:
        if not 1 <= port <= 65535:
            raise _BadValue(f"{key}: {port} is not a port (1 to 65535)")


def parse_endpoint(text: str) -> Endpoint:
    """ "192.0.2.1:1080" or "[2001:db8::1]:1080" as an Endpoint. ValueError says what is wrong."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not ADDRESS:PORT (an IPv6 address in brackets)")
    host = found[1] if found[1] is not None else found[2]
    return Endpoint.of(host, int(found[3]))


def _port_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not LOWEST-HIGHEST")
    low, high = int(found[1]), int(found[2])
    if not LOWEST_PINHOLE_PORT <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a range within {LOWEST_PINHOLE_PORT}-65535")
    return low, high

"""Values of the right type that make no sense: each is an error that begins with its key path."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from alg.registry import BrokenModule, modules
from gateway.config import Config, parse_endpoint, port_range


class BadValue(Exception):
    """A value of the right type that makes no sense; the message begins with its key path."""


def check(config: Config) -> None:
    """Raise BadValue for the first value that makes no sense."""
    network = config.network
    for i, text in enumerate(network.inside):
        _valid(f"network.inside[{i}]", text, ipaddress.ip_network)
    for i, name in enumerate(network.inside_interfaces):
        if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}\+?", name):
            raise BadValue(f"network.inside_interfaces[{i}]: {name!r} is not the name of an interface")
    if network.inside_interfaces and not network.inside:
        raise BadValue("network.inside: must name the inside networks, as network.inside_interfaces is set")
    if network.outside != "auto":
        _valid("network.outside", network.outside, ipaddress.ip_address)
    if not config.socks.listen and not config.transparent_enabled:
        raise BadValue("socks.listen: is empty and network.inside_interfaces too: there is nothing to do")
    for i, text in enumerate(config.socks.listen):
        _valid(f"socks.listen[{i}]", text, parse_endpoint)
    if not config.socks.auth:
        raise BadValue("socks.auth: must name at least one method")
    _positive("socks.handshake_timeout", config.socks.handshake_timeout)
    _ports("transparent.port", [config.transparent.port])
    _ports("transparent.ports", config.transparent.ports)
    low, high = _valid("pinhole.ports", config.pinhole.ports, port_range)
    if config.transparent_enabled and low <= config.transparent.port <= high:
        raise BadValue(f"pinhole.ports: {config.pinhole.ports} contains transparent.port {config.transparent.port}")
    _positive("pinhole.per_client", config.pinhole.per_client)
    if config.pinhole.backend == "kernel" and not network.inside:
        raise BadValue("pinhole.backend: kernel pinholes lead to inside clients, and network.inside is empty")
    _check_alg(config)
    if config.process.workers < 0:
        raise BadValue(f"process.workers: {config.process.workers} is negative (0: one per core)")
    if not config.process.run_dir.startswith("/"):
        raise BadValue(f"process.run_dir: {config.process.run_dir!r} is not an absolute path")
    if config.process.drain_timeout < 0:
        raise BadValue(f"process.drain_timeout: {config.process.drain_timeout:g} is negative")


def _check_alg(config: Config) -> None:
    try:
        known = modules()
    except BrokenModule as error:
        raise BadValue(f"alg: {error}") from error
    owner: dict[int, str] = {}
    for name, section in config.alg.items():
        if name not in known:
            raise BadValue(f"alg.{name}: no such protocol module (installed: {', '.join(sorted(known))})")
        _ports(f"alg.{name}.ports", section.ports)
        for port in section.ports:
            if owner.setdefault(port, name) != name:
                raise BadValue(f"alg.{name}.ports: port {port} belongs to alg.{owner[port]} already")


def _valid(key: str, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise BadValue(f"{key}: {error}") from error


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise BadValue(f"{key}: {value:g} is not greater than 0")


def _ports(key: str, ports: Iterable[int]) -> None:
    for port in ports:
        if not 1 <= port <= 65535:
            raise BadValue(f"{key}: {port} is not a port (1 to 65535)")

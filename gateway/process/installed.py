"""Loads the protocol modules that a process can use, and says which of them reads what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from alg.api import AlgModule, Mode
from alg.registry import DatagramKind, loadable, options_of
from gateway.config.schema import AlgSection, Config
from gateway.driver.readers import DatagramReader, StreamReader
from gateway.observe.log import get_logger

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = get_logger()


def installed(config: Config) -> tuple[Mapping[str, type[AlgModule]], Mapping[str, DatagramKind]]:
    """Return the modules of streams and of datagrams, by name. If a configured module can be imported by the supervisor
    but not by this process, that is logged, and what it would read passes unread; it must not end the service."""
    streams, datagrams, broken = loadable()
    for name, section in config.alg.items():
        if name not in streams and name not in datagrams and section.mode is not Mode.OFF:
            reason = broken.get(name) or broken.get("") or "it is not installed for this process"
            log.error("alg.broken", module=name, reason=reason)
    return streams, datagrams


def stream_readers(config: Config, kinds: Mapping[str, type[AlgModule]]) -> Mapping[int, StreamReader]:
    """Return the modules that read flows, by the ports of their servers. A module that is not in `kinds` reads nothing;
    if two have the same port, the first one reads it."""
    readers: dict[int, StreamReader] = {}
    for name, section in config.alg.items():
        if section.mode is not Mode.OFF and "tcp" in section.transports and name in kinds:
            reader = StreamReader(name, kinds[name], section.mode, _options(section, options_of(kinds[name])))
            for port in section.ports:
                readers.setdefault(port, reader)
    return readers


def datagram_readers(config: Config, kinds: Mapping[str, DatagramKind]) -> Mapping[int, DatagramReader]:
    """Return the modules that read datagrams, by the ports of their servers; otherwise as `stream_readers`."""
    readers: dict[int, DatagramReader] = {}
    for name, section in config.datagram_sections().items():
        if name in kinds:
            reader = DatagramReader(kinds[name], section.mode, _options(section, kinds[name].options))
            for port in section.ports:
                readers.setdefault(port, reader)
    return readers


def _options(section: AlgSection, options: type[DataclassInstance] | None) -> object | None:
    """Return a module's own keys as its `Options`. They have been checked."""
    return None if options is None else msgspec.convert(section.options, options)

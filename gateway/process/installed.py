"""Loads the protocol modules that a process can use."""

from __future__ import annotations

from collections.abc import Mapping

from alg.api import AlgModule, Mode
from alg.registry import DatagramKind, loadable
from gateway.config.schema import Config
from gateway.observe.log import get_logger

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

"""The protocol modules that a process can use."""

from __future__ import annotations

from collections.abc import Mapping

from alg.api import AlgModule, Mode
from alg.registry import DatagramKind, loadable
from gateway.config.schema import Config
from gateway.observe.log import get_logger

log = get_logger()


def installed(config: Config) -> tuple[Mapping[str, type[AlgModule]], Mapping[str, DatagramKind]]:
    """The modules of streams and of datagrams, by name. One that is configured and that only the supervisor could
    import must not end the service: that is logged, and what it would read passes unread."""
    streams, datagrams, broken = loadable()
    for name, section in config.alg.items():
        if name not in streams and name not in datagrams and section.mode is not Mode.OFF:
            reason = broken.get(name) or broken.get("") or "it is not installed for this process"
            log.error("alg.broken", module=name, reason=reason)
    return streams, datagrams

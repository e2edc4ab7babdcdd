"""The audit lines of pinholes: which host outside may reach which endpoint inside, and from when to when.

A broker under load writes thousands of them a second. As logfmt on a stream they are formatted here, bypassing
structlog, and equal those that it would make of `lease_fields` (tests/unit/test_pinhole_log.py). In any other format
they are logged like all other lines.
"""

from __future__ import annotations

from typing import Any

import structlog

from gateway.model.requests import Lease
from gateway.observe.counters import PINHOLE_RESULTS, broker_pinhole, counts
from gateway.observe.logfmt import Stamp, moment, value_text
from gateway.observe.sinks import Sink

_NOTHING: dict[str, str] = {}
_plain = structlog.get_logger()


def peer_of(lease: Lease) -> str | None:
    """Return the "peer" of a lease. For a conversation these are the addresses of all its peers; None if all hosts are
    admitted."""
    return lease.peer if lease.single or lease.peer or lease.peers is None else ",".join(lease.peers)


def shown_kind(lease: Lease) -> str:
    """Return the kind of a lease for the metrics: whatever a worker listens for itself is "local"."""
    return "local" if lease.backend == "userspace" else lease.kind


def lease_fields(lease: Lease) -> dict[str, Any]:
    """Return the fields of a log line about a lease."""
    return {
        "id": lease.id,
        "kind": lease.kind,
        "protocol": lease.protocol,
        "direction": lease.direction,
        "public": str(lease.public),
        "target": str(lease.target),
        "peer": peer_of(lease),
        "client": lease.client,
        "reason": lease.reason,
        "flow": lease.flow,
        "backend": lease.backend,
        "uses": int(lease.single),
        "expires": lease.expires,
        "second": lease.second,
    }


class PinholeLog:
    """Writes the audit lines of pinholes."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._head = ""
        self._stamp = Stamp()

    def configure(self, process: str, sink: Sink | None) -> None:
        """Use this process name and sink from now on, and logfmt. Without a sink, lines are logged like all others."""
        self._sink = sink
        self._head = f" level=info process={process} event="

    def info(self, event: str, lease: Lease, **more: Any) -> None:
        """Log an event of a lease. The fields `more` stand before those of the lease."""
        if self._sink is None:
            _plain.info(event, **more, **{**lease_fields(lease), "expires": moment(lease.expires)})
            return
        counts["algate_log_events_total", event] += 1
        if event in PINHOLE_RESULTS:
            broker_pinhole(PINHOLE_RESULTS[event], lease.backend, lease.kind, lease.protocol)
        said = "".join([f" {key}={value_text(value)}" for key, value in more.items()])
        peer, second = peer_of(lease), lease.second
        line = (
            f"timestamp={self._stamp.text()}{self._head}{event}{said} id={lease.id} kind={lease.kind}"
            f" protocol={lease.protocol}"
            f" direction={lease.direction} public={lease.public} target={lease.target} peer={peer or ''}"
            f" client={lease.client} reason={value_text(lease.reason)} flow={value_text(lease.flow)}"
            f" backend={lease.backend} uses={int(lease.single)} expires={moment(lease.expires)}"
            f" second={'' if second is None else second}"
        )
        self._sink.write(line, "info", _NOTHING)


PINHOLES = PinholeLog()
"""The pinhole log of this process."""

"""The audit lines of pinholes: who may reach whom from outside, since when, and until when.

A broker under load writes thousands of them a second, so as logfmt on a stream they are made here, past structlog, and
are those that it would make of `lease_fields` (tests/unit/test_pinhole_log.py). In any other form they take the way of
all lines.
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
    """The "peer" of a conversation is all its peers' addresses; None if anybody may come."""
    return lease.peer if lease.single or lease.peer or lease.peers is None else ",".join(lease.peers)


def lease_fields(lease: Lease) -> dict[str, Any]:
    """What a line says of a lease."""
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
    """Writes them."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._head = ""
        self._stamp = Stamp()

    def become(self, process: str, sink: Sink | None) -> None:
        """From now on lines are `process`'s, and go to `sink` as logfmt; None: the way of all lines."""
        self._sink = sink
        self._head = f" level=info process={process} event="

    def info(self, event: str, lease: Lease, **more: Any) -> None:
        """What happened to a lease; `more` stands before what it is."""
        if self._sink is None:
            _plain.info(event, **more, **{**lease_fields(lease), "expires": moment(lease.expires)})
            return
        counts["algate_log_events_total", event] += 1
        if event in PINHOLE_RESULTS:
            broker_pinhole(PINHOLE_RESULTS[event], lease.backend, lease.protocol)
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
"""This process's."""

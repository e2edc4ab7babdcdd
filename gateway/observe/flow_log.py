"""The two lines of a flow, written by the shortest way: they are most of what a log costs.

As logfmt on a stream they are made here, and are those that structlog would make of `flow.names()`
(tests/unit/test_flow_log.py). In any other form they take the way of all lines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import structlog

from alg.address import Endpoint
from gateway.observe.counters import count
from gateway.observe.logfmt import Stamp, value_text
from gateway.observe.sinks import Sink

_known_text = lru_cache(1024)(value_text)  # of words that come again and again


class Named(Protocol):
    """A flow, as its lines name it."""

    id: str
    front: str
    client: Endpoint
    server: Endpoint
    target: str | None
    user: str | None
    rule: str

    def names(self) -> dict[str, str]: ...


class FlowLog:
    """Lines as all others are."""

    def __init__(self) -> None:
        self._log: Any = structlog.get_logger()

    def opened(self, flow: Named) -> None:
        """It has begun."""
        self._log.info("flow.open", **flow.names())

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        """It is over, after `duration` seconds; `up` and `down` are bytes from and to the client."""
        self._log.info("flow.end", **flow.names(), reason=reason, up=up, down=down, duration=duration)


class NoFlowLog(FlowLog):
    """Without lines."""

    def __init__(self) -> None:
        pass

    def opened(self, flow: Named) -> None:
        pass

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        pass


class QuickFlowLog(FlowLog):
    """Lines as logfmt, past structlog."""

    def __init__(self, process: str, sink: Sink) -> None:
        self._sink = sink
        self._stamp = Stamp()
        self._head = f" level=info process={process} event=flow."

    def opened(self, flow: Named) -> None:
        count("algate_log_events_total", "flow.open")
        line = f"timestamp={self._stamp.text()}{self._head}open {_names(flow)} class=connection"
        self._sink.write(line, "info", {})

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        count("algate_log_events_total", "flow.end")
        line = (
            f"timestamp={self._stamp.text()}{self._head}end {_names(flow)} reason={_known_text(reason)}"
            f" up={up} down={down} duration={duration} class=connection"
        )
        self._sink.write(line, "info", {})


def _names(flow: Named) -> str:
    text = f"flow={flow.id} front={flow.front} client={flow.client} server={flow.server}"
    if flow.target:
        text += f" target={value_text(flow.target)}"
    if flow.user:
        text += f" user={value_text(flow.user)}"
    return f"{text} rule={_known_text(flow.rule)}" if flow.rule else text

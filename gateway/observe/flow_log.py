"""The two log lines of a flow, written the shortest way, because they are most of the cost of a log.

As logfmt on a stream they are formatted here, and equal those that structlog would make of `flow.names()`
(tests/unit/test_flow_log.py). In any other format they are logged like all other lines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import structlog

from alg.address import Endpoint
from gateway.observe.counters import counts
from gateway.observe.logfmt import Stamp, value_text
from gateway.observe.sinks import Sink

_OPENED = ("algate_log_events_total", "flow.open")
_ENDED = ("algate_log_events_total", "flow.end")
_NONE: dict[str, str] = {}
_known_text = lru_cache(1024)(value_text)  # of words that come again and again


class Named(Protocol):
    """A flow, as its log lines name it."""

    id: str
    front: str
    client: Endpoint
    server: Endpoint
    target: str | None
    user: str | None
    rule: str
    line: str  # a cache of the log writer: the constant part of the flow's lines

    def names(self) -> dict[str, str]: ...


class FlowLog:
    """Writes the lines of flows like all other lines."""

    def __init__(self) -> None:
        self._log: Any = structlog.get_logger()

    def opened(self, flow: Named) -> None:
        """Log that a flow has begun."""
        self._log.info("flow.open", **flow.names())

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        """Log that a flow has ended, after `duration` seconds. `up` and `down` are bytes from and to the client."""
        self._log.info("flow.end", **flow.names(), reason=reason, up=up, down=down, duration=duration)


class NoFlowLog(FlowLog):
    """Writes no lines (`log.connections = false`)."""

    def __init__(self) -> None:
        pass

    def opened(self, flow: Named) -> None:
        pass

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        pass


class QuickFlowLog(FlowLog):
    """Formats the lines as logfmt itself, bypassing structlog."""

    def __init__(self, process: str, sink: Sink) -> None:
        self._sink = sink
        self._stamp = Stamp()
        self._head = f" level=info process={process} event=flow."

    def opened(self, flow: Named) -> None:
        counts[_OPENED] += 1
        flow.line = _line(flow)
        rule = f" rule={_known_text(flow.rule)}" if flow.rule else ""
        self._sink.write(
            f"timestamp={self._stamp.text()}{self._head}open {flow.line}{rule} class=connection", "info", _NONE
        )

    def ended(self, flow: Named, reason: str, up: int, down: int, duration: float) -> None:
        counts[_ENDED] += 1
        rule = f" rule={_known_text(flow.rule)}" if flow.rule else ""
        line = (
            f"timestamp={self._stamp.text()}{self._head}end {flow.line or _line(flow)}{rule}"
            f" reason={_known_text(reason)} up={up} down={down} duration={duration} class=connection"
        )
        self._sink.write(line, "info", _NONE)


def _line(flow: Named) -> str:
    text = f"flow={flow.id} front={flow.front} client={flow.client} server={flow.server}"
    if flow.target:
        text += f" target={value_text(flow.target)}"
    if flow.user:
        text += f" user={value_text(flow.user)}"
    return text

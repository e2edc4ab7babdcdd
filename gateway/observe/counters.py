"""The counters of a process: plain numbers by metric and label values, cheap enough to be changed for each connection.

Most things are counted where they are logged: each log line has a stable event, so the code need not name both. What is
not logged is counted by `count` and `observe`. The console turns the numbers into Prometheus' format.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

Key = tuple[str, ...]
"""A metric's name, and the values of its labels (gateway/observe/metrics.py)."""

Fields = Mapping[str, Any]

PINHOLE_RESULTS = {
    "pinhole.open": "opened",
    "pinhole.use": "used",
    "pinhole.close": "closed",
    "pinhole.expire": "expired",
}

RECENT = 100  # noteworthy lines that are remembered
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

counts: Counter[Key] = Counter()
recent: deque[tuple[float, str, dict[str, Any]]] = deque(maxlen=RECENT)


class Histogram:
    """A histogram: observations in buckets by their upper bounds, and their sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value


histograms: dict[str, Histogram] = {}


def count(name: str, *labels: str) -> None:
    """Add one to a counter."""
    counts[(name, *labels)] += 1


def observe(name: str, seconds: float) -> None:
    """Add a duration to a histogram."""
    histogram = histograms.get(name)
    if histogram is None:
        histogram = histograms[name] = Histogram()
    histogram.observe(seconds)


def flow_opened(front: str, rule: str) -> None:
    """Count a flow that has begun; `rule` has permitted it. It is counted here because the log may leave out lines of
    flows."""
    counts["algate_flows_opened_total", front] += 1
    if front != "pinhole":
        counts["algate_handshakes_total", front, "granted"] += 1
        if rule:
            counts["algate_permits_total", rule] += 1


def tally(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The first processor of the log: counts the event, and keeps it if it is noteworthy."""
    name = event["event"]
    counts["algate_log_events_total", name] += 1
    handler = _HANDLERS.get(name)
    if handler is not None:
        handler(event)
    if method in _LOUD or name in _NOTEWORTHY:
        recent.append((time.time(), method, dict(event)))
    return event


# --- what the lines of the log mean ---------------------------------------------------------------------------------


def _failed(front: str) -> Callable[[Fields], None]:
    def failed(event: Fields) -> None:
        failure = event.get("failure", "loop")
        if "flow" not in event:  # a target of a UDP association is no handshake
            counts["algate_handshakes_total", front, failure] += 1
        if failure == "denied":
            counts["algate_denials_total", front, event.get("rule") or "none"] += 1

    return failed


def _handshake(result: str) -> Callable[[Fields], None]:
    def ended(_event: Fields) -> None:
        counts["algate_handshakes_total", "socks", result] += 1

    return ended


def _pinhole(result: str) -> Callable[[Fields], None]:
    def happened(event: Fields) -> None:
        if "backend" in event:
            broker_pinhole(result, event["backend"], event["kind"], event["protocol"])
            return
        what = "expired" if event.get("reason") == "expired" else result
        counts["algate_pinhole_events_total", "userspace", "local", event.get("protocol", "tcp"), what] += 1

    return happened


def broker_pinhole(result: str, backend: str, kind: str, protocol: str) -> None:
    """Count a pinhole of the broker that was "opened", "used", "closed" or "expired". A pinhole at which a worker
    listens is counted by that worker."""
    if backend == "kernel":
        counts["algate_pinhole_events_total", backend, kind, protocol, result] += 1


def _pinhole_refused(event: Fields) -> None:
    if "slot" not in event:  # the broker's own line: the process that asked counts it
        counts["algate_pinhole_refusals_total", event["rule"]] += 1


def _edit(event: Fields) -> None:
    counts["algate_edits_total", event["reason"], "yes" if event["applied"] else "no"] += 1


def _revoke(event: Fields) -> None:
    counts["algate_revocations_total", event["rule"]] += 1


def _udp_dropped(event: Fields) -> None:
    for reason, number in event.items():
        if isinstance(number, int):
            counts["algate_udp_dropped_total", reason] += number


_HANDLERS: dict[str, Callable[[Fields], None]] = {
    "socks.denied": _failed("socks"),
    "socks.failed": _failed("socks"),
    "socks.malformed": _handshake("malformed"),
    "socks.timeout": _handshake("slow"),
    "socks.tls_failed": _handshake("malformed"),
    "auth.failed": _handshake("unauthenticated"),
    "auth.banned": _handshake("unauthenticated"),
    "auth.no_method": _handshake("unauthenticated"),
    "auth.overloaded": _handshake("unauthenticated"),
    "auth.protection": _handshake("unauthenticated"),
    "transparent.failed": _failed("transparent"),
    "transparent.loop": _failed("transparent"),
    "publish.failed": _failed("published"),
    **{event: _pinhole(result) for event, result in PINHOLE_RESULTS.items()},
    "pinhole.refused": _pinhole_refused,
    "alg.edit": _edit,
    "alg.revoke": _revoke,
    "socks.udp_dropped": _udp_dropped,
}
_LOUD = frozenset(("warning", "error", "critical", "exception"))
_NOTEWORTHY = frozenset(
    ("auth.banned", "drain", "process.end", "process.start", "ready", "rule.deny", "socks.denied", "socks.failed")
)


def recent_rows() -> list[dict[str, Any]]:
    """Return the noteworthy events as objects; `time` is Unix time."""
    return [
        {
            "time": when,
            "level": level,
            **{key: value if isinstance(value, str | int | float) else str(value) for key, value in event.items()},
        }
        for when, level, event in tuple(recent)
    ]

"""Makes the JSON for the page from the answers of the processes. Pure, except for the host's name."""

from __future__ import annotations

import socket
from typing import Any

from gateway import __version__
from gateway.console.gatherer import Gatherer, Snapshot
from gateway.console.totals import Buckets
from gateway.observe.admin import Rows

POINT = ("time", "flows", "up", "down", "opened", "denied", "pinholes", "edits", "refused", "calls", "kernel")
"""The names of the numbers in a point of the charts (`Gatherer.points`)."""
FLOW = ("id", "front", "client", "server", "parent", "user", "module", "rule", "since", "up", "down")
PINHOLE = (
    "id", "kind", "protocol", "direction", "public", "target", "peer", "client", "reason", "flow", "backend", "expires",
    "packets", "bytes",
)  # fmt: skip
MOST_EVENTS = 60

_HOST = socket.gethostname()


def overview(snapshot: Snapshot, gatherer: Gatherer) -> dict[str, Any]:
    """Return everything but the tables."""
    sums = gatherer.totals.sums()
    lag = {process: buckets for process, name, buckets in gatherer.totals.histograms() if name.endswith("lag_seconds")}
    status = snapshot.supervisor or {"state": "unknown", "children": {}}
    processes = []
    for name, answer in snapshot.answers.items():
        row: dict[str, Any] = {"name": name, "ok": answer.row is not None, "error": answer.error}
        row["answer"] = round(answer.seconds, 4)
        row["restarts"] = status["children"].get(name, {}).get("restarts", 0)
        row["lag"] = _mean(lag.get(name))
        for key, *labels, value in answer.row["samples"] if answer.row else ():
            field = _FIELDS.get((key, *labels))
            if field is not None:
                row[field] = value
        processes.append(row)
    return {
        "time": snapshot.time,
        "host": _HOST,
        "version": __version__,
        "state": status["state"],
        "iptables": status.get("rules", ""),
        "failures": snapshot.failures(),
        "obstacles": snapshot.obstacles(),
        "processes": processes,
        "point": gatherer.points[-1],
        "rules": _rules(sums),
        "handshakes": _by_labels(sums, "algate_handshakes_total"),
        "edits": _by_labels(sums, "algate_edits_total"),
        "refusals": _by_labels(sums, "algate_pinhole_refusals_total"),
        "sums": {name: sum(sums.get(name, {}).values()) for name in _SUMS},
    }


_FIELDS = {
    ("algate_process_start_time_seconds",): "start",
    ("algate_process_resident_bytes",): "memory",
    ("algate_process_cpu_seconds_total",): "cpu",
    ("algate_process_open_descriptors",): "descriptors",
    ("algate_process_descriptor_limit",): "limit",
    ("algate_connections", "flow"): "flows",
    ("algate_connections", "handshake"): "handshakes",
}
_SUMS = (
    "algate_flows_opened_total",
    "algate_revocations_total",
    "algate_calls_total",
    "algate_registrations",
    "algate_messages_unread_total",
    "algate_queue_dropped_total",
)


def events(rows: Rows) -> Rows:
    """Return the noteworthy log events of all processes, the latest first."""
    return sorted(rows, key=lambda row: row["time"], reverse=True)[:MOST_EVENTS]


def table(columns: tuple[str, ...], rows: Rows) -> dict[str, Any]:
    """Return rows as arrays, because a browser reads thousands of them again and again."""
    return {"columns": columns, "rows": [[row.get(column) for column in columns] for row in rows]}


def _rules(sums: dict[str, dict[tuple[str, ...], float]]) -> list[dict[str, Any]]:
    rules: dict[str, dict[str, Any]] = {}
    for name, field in (("algate_permits_total", "permits"), ("algate_denials_total", "denials")):
        for labels, value in sums.get(name, {}).items():
            row = rules.setdefault(labels[-1], {"rule": labels[-1], "permits": 0, "denials": 0})
            row[field] += value
    return sorted(rules.values(), key=lambda row: -row["permits"] - row["denials"])


def _by_labels(sums: dict[str, dict[tuple[str, ...], float]], name: str) -> list[list[Any]]:
    return [[*labels, value] for labels, value in sorted(sums.get(name, {}).items(), key=lambda item: -item[1])]


def _mean(buckets: Buckets | None) -> float | None:
    number = sum(buckets.buckets) if buckets is not None else 0
    return round(buckets.sum / number, 5) if buckets is not None and number else None

"""The reference of the metrics, read from the list that the exposition is made from."""

from __future__ import annotations

from gateway.cli.reference.configuration import GENERATED
from gateway.observe.metrics import METRICS

_INTRODUCTION = """\
# Metrics

At `http://127.0.0.1:9180/metrics`, in Prometheus' text format ([how to](../how-to/monitoring.md)). Every metric has the
label `process` (`worker-0`, `broker`, `packets`, `supervisor`, `console`), a histogram also its `le`. Counters go on
where a process is replaced, and begin anew with the gateway.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""


def markdown() -> str:
    """Return docs/reference/metrics.md."""
    parts = [GENERATED.format(source="gateway/observe/metrics.py"), _INTRODUCTION]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        parts.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n")
    return "".join(parts)

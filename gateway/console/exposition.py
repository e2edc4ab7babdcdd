"""The metrics in Prometheus' text format, by prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.console.totals import Series, Totals
from gateway.observe.metrics import METRICS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(totals: Totals, further: Iterable[tuple[Series, float]]) -> bytes:
    """Return all metrics of all processes. `further`: gauges that the console itself measures."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gathered(totals, further))
    return generate_latest(registry)


class _Gathered(Collector):
    def __init__(self, totals: Totals, further: Iterable[tuple[Series, float]]) -> None:
        self._totals = totals
        self._further = further

    def collect(self) -> Iterator[Metric]:
        samples: dict[str, list[tuple[list[str], float]]] = {}
        for (process, name, *labels), value in (*self._totals.counters(), *self._totals.gauges(), *self._further):
            samples.setdefault(name, []).append(([process, *labels], value))
        histograms: dict[str, HistogramMetricFamily] = {}
        for process, name, buckets in self._totals.histograms():
            family = histograms.get(name)
            if family is None:
                family = histograms[name] = HistogramMetricFamily(name, "", labels=["process"])
            count, series = 0.0, []
            for bound, number in zip([*map(str, buckets.bounds), "+Inf"], buckets.buckets, strict=True):
                count += number
                series.append((bound, count))
            family.add_metric([process], series, buckets.sum)
        for metric in METRICS:
            if metric.kind == "histogram":
                if metric.name in histograms:
                    histograms[metric.name].documentation = metric.help
                    yield histograms[metric.name]
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family_of = kind(metric.name.removesuffix("_total"), metric.help, labels=["process", *metric.labels])
            for labels, value in sorted(samples.get(metric.name, ())):
                family_of.add_metric(labels, value)
            yield family_of

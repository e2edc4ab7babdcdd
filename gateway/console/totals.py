"""Counters that survive a restart: what a process had counted when it was replaced is added to what its successor
counts.

They are kept in a memfd that the supervisor holds, so that the console itself may be replaced too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.observe.metrics import BY_NAME

Series = tuple[str, ...]
"""Process, name, values of labels."""


class Buckets(msgspec.Struct):
    """A histogram: counts in buckets by their upper bounds (and beyond), and the sum of what was observed."""

    bounds: list[float]
    buckets: list[float]
    sum: float

    def plus(self, other: Buckets) -> Buckets:
        pairs = zip(self.buckets, other.buckets, strict=True)
        return Buckets(self.bounds, [ours + theirs for ours, theirs in pairs], self.sum + other.sum)


class _ReportedHistogram(Buckets):
    name: str


class _Report(msgspec.Struct):
    process: str
    start: float
    samples: list[list[str | float | bool]]
    histograms: list[_ReportedHistogram]


def check_row(row: dict[str, Any], process: str) -> None:
    """Raise ValueError unless this can be the `metrics_row` of that process. A process that was taken over may send
    anything."""
    report = msgspec.convert(row, _Report)
    if report.process != process:
        raise ValueError(f"it says that it is {report.process[:40]!r}")
    for *key, value in report.samples:
        if isinstance(value, str) or not key or not all(isinstance(word, str) for word in key):
            raise ValueError("a sample has no name or no number")
    if any(len(histogram.buckets) != len(histogram.bounds) + 1 for histogram in report.histograms):
        raise ValueError("a histogram has too many or too few buckets")


class _Counted(msgspec.Struct):
    counters: list[tuple[Series, float]] = []
    histograms: dict[str, Buckets] = {}


class _Process(msgspec.Struct):
    """The counters of one process: when the current one was started, what it has counted, and what its predecessors had
    counted."""

    start: float
    now: _Counted
    before: _Counted


class Totals:
    """All counters. `fd`: the memfd in which they are kept."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._gauges: dict[str, list[tuple[Series, float]]] = {}
        size = os.fstat(fd).st_size
        try:
            self._processes = msgspec.json.decode(os.pread(fd, size, 0), type=dict[str, _Process])
        except msgspec.DecodeError:  # nothing yet, or a console that was killed while it wrote
            self._processes = {}

    def take(self, row: dict[str, Any]) -> None:
        """Add the answer of a process to "metrics"."""
        name = row["process"]
        counted = _Counted()
        gauges = self._gauges[name] = []
        for *key, value in row["samples"]:
            metric = BY_NAME.get(key[0])
            if metric is not None:
                (gauges if metric.kind == "gauge" else counted.counters).append(((name, *key), value))
        for histogram in row["histograms"]:
            counted.histograms[histogram["name"]] = Buckets(
                list(histogram["bounds"]), list(histogram["buckets"]), histogram["sum"]
            )
        known = self._processes.get(name)
        if known is None:
            self._processes[name] = _Process(row["start"], counted, _Counted())
        elif known.start == row["start"]:
            known.now = counted
        else:
            self._processes[name] = _Process(row["start"], counted, _sum(known.before, known.now))

    def lost(self, process: str) -> None:
        """Note that a process did not answer: its gauges are unknown."""
        self._gauges.pop(process, None)

    def keep(self) -> None:
        """Write the counters into the memfd."""
        data = msgspec.json.encode(self._processes)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def gauges(self) -> Iterator[tuple[Series, float]]:
        for samples in self._gauges.values():
            yield from samples

    def counters(self) -> Iterator[tuple[Series, float]]:
        for process in self._processes.values():
            yield from _sum(process.before, process.now).counters

    def histograms(self) -> Iterator[tuple[str, str, Buckets]]:
        """Return all histograms as process, name and buckets."""
        for name, process in self._processes.items():
            for metric, buckets in _sum(process.before, process.now).histograms.items():
                yield name, metric, buckets

    def sums(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return all counters and gauges by metric and labels, summed up over the processes."""
        sums: dict[str, dict[tuple[str, ...], float]] = {}
        for (_, name, *labels), value in (*self.counters(), *self.gauges()):
            of_metric = sums.setdefault(name, {})
            key = tuple(labels)
            of_metric[key] = of_metric.get(key, 0) + value
        return sums


def _sum(first: _Counted, second: _Counted) -> _Counted:
    counters = dict(first.counters)
    for key, value in second.counters:
        counters[key] = counters.get(key, 0) + value
    histograms = dict(first.histograms)
    for name, buckets in second.histograms.items():
        before = histograms.get(name)
        same = before is not None and before.bounds == buckets.bounds  # an earlier version may have had others
        histograms[name] = before.plus(buckets) if before is not None and same else buckets
    return _Counted(list(counters.items()), histograms)

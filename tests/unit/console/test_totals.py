"""Counters go on, whoever is replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.console.exposition import exposition
from gateway.console.totals import Totals


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("totals")
    yield fd
    os.close(fd)


def row(start: float, opened: int, flows: int = 0, buckets: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return {
        "process": "worker-0",
        "start": start,
        "samples": [["algate_flows_opened_total", "socks", opened], ["algate_flows", "socks", flows]],
        "histograms": [
            {"name": "algate_broker_seconds", "bounds": [0.1], "buckets": buckets, "sum": float(buckets[0])}
        ],
    }


def opened(totals: Totals) -> float:
    return totals.sums()["algate_flows_opened_total"]["socks",]


def test_a_successor_counts_on(fd: int) -> None:
    totals = Totals(fd)
    totals.take(row(1.0, 7))
    totals.take(row(1.0, 9))
    assert opened(totals) == 9
    totals.take(row(2.0, 1))
    assert opened(totals) == 10
    totals.take(row(2.0, 4))
    totals.take(row(3.0, 0))
    assert opened(totals) == 13


def test_another_console_goes_on_where_the_first_was(fd: int) -> None:
    first = Totals(fd)
    first.take(row(1.0, 7, buckets=(3, 1)))
    first.take(row(2.0, 2, buckets=(1, 0)))
    first.keep()
    second = Totals(fd)
    assert opened(second) == 9
    second.take(row(2.0, 3, buckets=(2, 0)))
    assert opened(second) == 10
    ((_, _, buckets),) = second.histograms()
    assert (buckets.buckets, buckets.sum) == ([5, 1], 5.0)


def test_a_shorter_document_leaves_nothing_of_a_longer_one(fd: int) -> None:
    totals = Totals(fd)
    os.write(fd, b"x" * 100_000)
    totals.take(row(1.0, 7))
    totals.keep()
    assert opened(Totals(fd)) == 7


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"worker-0":{"start":1}}', b"\xff\xfe"])
def test_a_document_that_is_none_is_no_beginning(fd: int, rubbish: bytes) -> None:
    os.write(fd, rubbish)
    totals = Totals(fd)
    totals.take(row(1.0, 7))
    assert opened(totals) == 7


def test_a_version_with_other_bounds_begins_its_histograms_anew(fd: int) -> None:
    first = Totals(fd)
    first.take(row(1.0, 7, buckets=(3, 1)))
    first.keep()
    second = Totals(fd)
    other = row(2.0, 2)
    other["histograms"] = [{"name": "algate_broker_seconds", "bounds": [0.1, 1.0], "buckets": (1, 0, 0), "sum": 0.1}]
    second.take(other)
    assert opened(second) == 9
    ((_, _, buckets),) = second.histograms()
    assert buckets.buckets == [1, 0, 0]


def test_a_gauge_is_of_the_moment(fd: int) -> None:
    totals = Totals(fd)
    totals.take(row(1.0, 0, flows=5))
    totals.take(row(2.0, 0, flows=2))
    assert totals.sums()["algate_flows"]["socks",] == 2
    totals.lost("worker-0")
    assert "algate_flows" not in totals.sums()


def test_the_exposition_has_every_kind(fd: int) -> None:
    totals = Totals(fd)
    totals.take(row(1.0, 7, flows=5, buckets=(3, 1)))
    lines = exposition(totals, [(("console", "algate_ready"), True)]).decode().splitlines()
    assert 'algate_flows_opened_total{front="socks",process="worker-0"} 7.0' in lines
    assert 'algate_flows{front="socks",process="worker-0"} 5.0' in lines
    assert 'algate_broker_seconds_bucket{le="0.1",process="worker-0"} 3.0' in lines
    assert 'algate_broker_seconds_bucket{le="+Inf",process="worker-0"} 4.0' in lines
    assert 'algate_broker_seconds_count{process="worker-0"} 4.0' in lines
    assert 'algate_ready{process="console"} 1.0' in lines
    assert "# TYPE algate_flows_opened_total counter" in lines

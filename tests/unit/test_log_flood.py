"""Who sends garbage as fast as he can does not fill the disk, and hides nothing else by it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator

import pytest
import structlog

from gateway.config.schema import LogSection
from gateway.observe.events import EVENTS
from gateway.observe.flood import BURST, LIMITED, RATE, Flood
from gateway.observe.log import KINDS, get_logger, setup_logging


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_burst_then_a_rate_and_what_is_missing_is_said() -> None:
    flood = Flood(burst=3, rate=2.0)
    assert [flood.take("auth.failed", 10.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert flood.take("auth.failed", 10.4) is None
    assert flood.take("auth.failed", 10.5) == 3
    assert [flood.take("auth.failed", 100.0) for _ in range(4)] == [0, 0, 0, None]


def test_one_kind_hides_no_other_and_what_is_done_is_always_written() -> None:
    flood = Flood(burst=1, rate=0.001)
    assert [flood.take("socks.malformed", 0.0) for _ in range(2)] == [0, None]
    assert flood.take("auth.failed", 0.0) == 0
    assert [flood.take("pinhole.open", 0.0) for _ in range(1000)] == [0] * 1000


def test_ten_thousand_of_a_kind() -> None:
    stream = io.StringIO()
    setup_logging("worker-0", LogSection().settings, stream)
    log = get_logger()
    for number in range(10_000):
        log.info("socks.malformed", client=f"192.0.2.1:{number}")
    log.info("pinhole.open", pinhole="p")
    lines = stream.getvalue().splitlines()
    assert BURST < len(lines) < BURST + 10 * RATE
    assert "event=pinhole.open" in lines[-1]
    more, deadline = 0, time.monotonic() + 5
    while len(stream.getvalue().splitlines()) == len(lines):  # until a line is due again
        assert time.monotonic() < deadline
        log.info("socks.malformed", client="192.0.2.2:1")
        more += 1
    left_out = sum(int(found) for found in re.findall(r"left_out=(\d+)", stream.getvalue()))
    assert left_out + len(lines) - 1 + 1 == 10_000 + more


def test_what_is_limited_is_known_and_is_nothing_that_we_do_ourselves() -> None:
    assert EVENTS.keys() >= LIMITED
    assert not LIMITED & set(KINDS["connection"])
    assert not {event for event in LIMITED if event.startswith(("process.", "file.", "flow."))}
    ours = {"auth.ban", "bind.denied", "flow.denied", "quota.used_up", "rule.deny"}  # or asked for by a rule
    assert {event for event in KINDS["denied"] if event not in LIMITED} == ours

"""gateway.pinhole.pacing: a rate that is exceeded paces, and refuses only after that."""

from __future__ import annotations

import time

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.bucket import Rate
from gateway.model.errors import PinholeRefused
from gateway.pinhole import pacing
from gateway.pinhole.pacing import PATIENCE, at_its_pace


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Limited:
    """A backend that counts what it is asked, and lets through what a rate lets."""

    def __init__(self, clock: Clock, per_second: float, burst: float) -> None:
        self.asked = self.opened = 0
        self._clock = clock
        self._rate = Rate(per_second, burst)

    def open(self) -> int:
        self.asked += 1
        if not self._rate.take("a", self._clock.now()):
            raise PinholeRefused("rate", "too fast")
        self.opened += 1
        return self.opened


def test_what_is_within_the_rate_does_not_wait() -> None:
    clock = Clock()
    backend = Limited(clock, 100, 200)
    for number in range(1, 201):
        assert at_its_pace(backend.open, "a", lambda: True, clock.now, clock.sleep) == number
    assert clock.time == 1000.0


@given(st.integers(100, 1000), st.sampled_from([10.0, 100.0, 1000.0]))
@settings(deadline=None, max_examples=40)
def test_what_is_beyond_it_waits_and_is_served(count: int, per_second: float) -> None:
    """One after the other, as the commands of a session are: none is refused, and the rate holds."""
    clock = Clock()
    backend = Limited(clock, per_second, 2 * per_second)
    for _ in range(count):
        at_its_pace(backend.open, "a", lambda: True, clock.now, clock.sleep)
    assert backend.opened == count
    assert count <= 2 * per_second + (clock.time - 1000.0) * per_second + 1
    assert backend.asked < count + (clock.time - 1000.0) / 0.004 + 1  # and the broker is not asked all the time
    assert not pacing._queues


def test_it_ends() -> None:
    clock = Clock()
    backend = Limited(clock, 0.01, 0)
    with pytest.raises(PinholeRefused, match="too fast"):
        at_its_pace(backend.open, "a", lambda: True, clock.now, clock.sleep)
    assert PATIENCE <= clock.time - 1000.0 < PATIENCE + 0.1
    assert not pacing._queues


@pytest.mark.parametrize("rule", ["quota", "full", "target", "flow"])
def test_other_refusals_are_told_at_once(rule: str) -> None:
    clock = Clock()

    def refuse() -> None:
        raise PinholeRefused(rule, "no")

    with pytest.raises(PinholeRefused, match="no"):
        at_its_pace(refuse, "a", lambda: True, clock.now, clock.sleep)
    assert clock.time == 1000.0


def test_nobody_waits_for_what_nobody_wants() -> None:
    clock = Clock()
    backend = Limited(clock, 0.01, 0)
    with pytest.raises(PinholeRefused):
        at_its_pace(backend.open, "a", lambda: clock.time < 1000.5, clock.now, clock.sleep)
    assert clock.time < 1001.0


def test_many_that_wait_are_served_in_order_and_ask_no_more_often_than_one() -> None:
    """Forty flows of one client at real greenlets: none is unlucky, whatever another worker takes meanwhile."""
    per_second = 200.0
    real = Limited(Clock(), per_second, 1)
    real._clock.now = time.monotonic  # type: ignore[method-assign]
    served: list[int] = []

    def flow(number: int) -> None:
        at_its_pace(real.open, "a", lambda: True)
        served.append(number)

    begun = time.monotonic()
    flows = [gevent.spawn(flow, number) for number in range(40)]
    gevent.joinall(flows, timeout=10, raise_error=True)
    assert served == list(range(40))
    assert real.asked < 40 + (time.monotonic() - begun) / 0.004 + 1
    assert not pacing._queues


def test_who_waits_behind_others_for_too_long_is_refused_and_the_next_goes_on() -> None:
    clock = Clock()
    backend = Limited(clock, 0.01, 0)
    clock.now = time.monotonic  # type: ignore[method-assign]
    results = [gevent.spawn(at_its_pace, backend.open, "a", lambda: True) for _ in range(5)]
    other = gevent.spawn(at_its_pace, lambda: 7, "b", lambda: True)
    gevent.joinall([*results, other], timeout=10)
    assert other.value == 7
    assert all(isinstance(result.exception, PinholeRefused) for result in results)
    assert not pacing._queues


def test_a_flow_that_ended_in_the_queue_opens_nothing() -> None:
    clock = Clock()
    clock.now = time.monotonic  # type: ignore[method-assign]
    backend = Limited(clock, 20, 1)
    alive = [True, True, False, True]
    results = [gevent.spawn(at_its_pace, backend.open, "a", lambda number=number: alive[number]) for number in range(4)]
    gevent.joinall(results, timeout=10)
    assert [result.successful() for result in results] == alive
    assert backend.opened == 3

"""The timer wheel: never early, at most a tick late, and quiet when nothing waits."""

from __future__ import annotations

from time import monotonic

import gevent
import pytest

from gateway.net.relay.wheel import Wheel, WheelEntry


def test_checks_come_in_time() -> None:
    wheel = Wheel(tick=0.02, slots=16)  # the horizon is 0.32 s
    start = monotonic()
    late: dict[float, float] = {}

    def due_at(due: float) -> None:
        def check(now: float) -> float | None:
            if now < start + due:
                return start + due
            late[due] = monotonic() - start - due
            return None

        wheel.add(start + due, check)

    wanted = [0.0, 0.01, 0.05, 0.3, 0.31, 0.5, 0.9]
    for due in wanted:
        due_at(due)
    while len(wheel) and monotonic() < start + 10:
        gevent.sleep(0.01)
    assert sorted(late) == wanted
    assert all(0 <= by < 0.2 for by in late.values()), late


def test_put_off_and_discarded() -> None:
    wheel = Wheel(tick=0.01, slots=8)
    seen: list[str] = []
    entries: list[WheelEntry] = []

    def again(now: float) -> float | None:
        seen.append("again")
        return now + 0.03 if len(seen) < 4 else None

    def discards_the_other(now: float) -> None:
        for entry in entries:
            wheel.discard(entry)
            wheel.discard(entry)

    def never(now: float) -> None:
        seen.append("never")

    start = monotonic()
    wheel.add(start, again)
    entries.append(wheel.add(start + 0.1, never))
    wheel.add(start + 0.03, discards_the_other)
    assert len(wheel) == 3
    while len(wheel) and monotonic() < start + 10:
        gevent.sleep(0.01)
    assert seen == ["again"] * 4


def test_a_check_that_discards_itself() -> None:
    wheel = Wheel(tick=0.01)
    entry = wheel.add(0, lambda now: wheel.discard(entry))
    wheel.discard(wheel.add(0, lambda now: None))
    start = monotonic()
    while len(wheel) and monotonic() < start + 10:
        gevent.sleep(0.01)
    assert len(wheel) == 0


def test_a_check_that_fails_is_reported_and_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    wheel = Wheel(tick=0.01)

    def fails(now: float) -> None:
        raise RuntimeError("check failed")

    wheel.add(0, fails)
    start = monotonic()
    while len(wheel) and monotonic() < start + 10:
        gevent.sleep(0.01)
    assert len(wheel) == 0
    assert "check failed" in capsys.readouterr().err


def test_no_timer_runs_when_nothing_waits() -> None:
    wheel = Wheel(tick=0.01)
    assert not wheel._timer.active  # type: ignore[attr-defined]
    entry = wheel.add(monotonic() + 60, lambda now: None)
    assert wheel._timer.active  # type: ignore[attr-defined]
    wheel.discard(entry)
    assert not wheel._timer.active  # type: ignore[attr-defined]

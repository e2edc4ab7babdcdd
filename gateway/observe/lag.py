"""Measures how late the event loop is, by a timer. For processes with gevent."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from gevent import get_hub

from gateway.observe.counters import observe

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher

INTERVAL = 0.5  # seconds


class LagMeter:
    """Observes `algate_event_loop_lag_seconds` as long as it exists."""

    def __init__(self) -> None:
        self._timer: _TimerWatcher = get_hub().loop.timer(INTERVAL, INTERVAL, ref=False)
        self._due = monotonic() + INTERVAL
        self._timer.start(self._tick, update=True)

    def _tick(self) -> None:
        now = monotonic()
        observe("algate_event_loop_lag_seconds", max(0.0, now - self._due))
        self._due = now + INTERVAL

"""Slices of time: work that could go on for ever is done in small pieces, and between them all others are served.

gevent looks at sockets and timers only when its callbacks are done, or after fifty of them. A greenlet whose socket
always has something to read never waits, and `gevent.sleep(0)` gives way to other callbacks only: with pieces of one
millisecond it took 136 ms until another socket was looked at. A timer that is due at once makes libev look at all
sockets first, and costs two microseconds.

The work of one round of the event loop is added up over all greenlets; beyond `BUDGET` the rest waits in line. The line
gets one budget for each round, however many wait in it.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gevent import get_hub, getcurrent

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher

BUDGET = 0.001  # seconds of work in a round of the event loop, and as much again for those that wait in line


class Slices:
    """The line of waiting greenlets of one process, made in its hub's thread. Times are in seconds."""

    def __init__(self, budget: float = BUDGET) -> None:
        self.hub = get_hub()
        self._budget = budget
        self._spent = 0.0  # in this round
        self._lines: tuple[deque[Any], deque[Any]] = deque(), deque()  # greenlets: the light ones, the others
        self._calling = False  # those that wait in line, until then:
        self._until = 0.0
        self._due = False  # whether the timer is started
        self._timer: _TimerWatcher = self.hub.loop.timer(0.0)

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    @property
    def over(self) -> bool:
        """Whether this round's budget is spent. Then a greenlet must `wait` before it works."""
        return perf_counter() >= self._until if self._calling else self._spent >= self._budget

    def spend(self, seconds: float) -> None:
        """Count `seconds` of work. Small amounts are added up over rounds, which costs nothing but a round now and
        then."""
        if not self._calling:  # else it is measured below
            self._spent += seconds

    def wait(self, light: bool = False) -> None:
        """Let others go on, and return in a later round. `light`: before those that are not light. Must not be called
        in the hub."""
        current, line = getcurrent(), self._lines[0 if light else 1]
        line.append(current)
        self._ask()
        try:
            self.hub.switch()
        except BaseException:  # it was killed while it waited
            if current in line:
                line.remove(current)
            raise

    def _next_round(self) -> None:
        """Called when libev has looked at sockets and timers: wake those that wait, for one budget."""
        self._due = False
        self._spent = 0.0
        light, other = self._lines
        if not light and not other:
            return
        self._until = perf_counter() + self._budget
        self._calling = True
        try:
            while light or other:
                (light or other).popleft().switch()
                if self.over:
                    break
        finally:
            self._calling = False
        if light or other:
            self._ask()

    def _ask(self) -> None:
        if not self._due:
            self._due = True
            self._timer.start(self._next_round)


_slices: Slices | None = None


def slices() -> Slices:
    """Return the line of this process (of this thread's hub)."""
    global _slices
    if _slices is None or _slices.hub is not get_hub():
        _slices = Slices()
    return _slices

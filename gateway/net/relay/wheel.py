"""A timer wheel: many time limits that are seldom reached, for the cost of one timer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import get_hub

from gateway.net.slices import BUDGET, PIECE, slices

if TYPE_CHECKING:
    from gevent._types import _Loop, _TimerWatcher

TICK = 0.25  # seconds
SLOTS = 256

Check = Callable[[float], float | None]


class WheelEntry:
    """A check that waits in a wheel."""

    __slots__ = ("check", "slot")

    def __init__(self, check: Check) -> None:
        self.check: Check | None = check
        self.slot = 0


class Wheel:
    """Calls checks at their time, up to one tick late, in the hub. The timer runs only while something waits.

    A check gets the time (of `time.monotonic()`) and returns the time of its next call, or None when it is done. So an
    event that happens often (a byte moved) only notes the time, and the check finds out that it came too early. Where
    hundreds are due at once others are served between them (`slices`).
    """

    def __init__(self, tick: float = TICK, slots: int = SLOTS) -> None:
        self.tick = tick
        self.horizon = tick * (slots - 1)  # seconds; what is due later is looked at once in that time, and put back
        self._slots: list[set[WheelEntry]] = [set() for _ in range(slots)]
        self._at = 0  # the slot that was looked at last, and when
        self._when = time.monotonic()
        self._waiting = 0
        self._loop: _Loop = get_hub().loop
        self._timer: _TimerWatcher = self._loop.timer(tick, tick, ref=False)
        self._late: deque[WheelEntry] = deque()  # whose time has come
        self._soon: _TimerWatcher = self._loop.timer(0.0)

    def __len__(self) -> int:
        return self._waiting

    def add(self, due: float, check: Check) -> WheelEntry:
        """Call `check` at `due`. The result is for `discard`."""
        if not self._waiting:
            self._when = time.monotonic()
            self._timer.again(self._tick)
        entry = WheelEntry(check)
        self._insert(entry, due)
        self._waiting += 1
        return entry

    def discard(self, entry: WheelEntry) -> None:
        """Forget `entry`. It is no error if it is done already."""
        if entry.check is not None:
            entry.check = None
            self._slots[entry.slot].discard(entry)
            self._left()

    def _insert(self, entry: WheelEntry, due: float) -> None:
        # What lies beyond the horizon is looked at once a turn and put back.
        ticks = min(max(int((due - self._when) / self.tick) + 1, 1), len(self._slots) - 1)
        entry.slot = (self._at + ticks) % len(self._slots)
        self._slots[entry.slot].add(entry)

    def _tick(self) -> None:
        now = time.monotonic()
        while self._waiting and self._when + self.tick <= now:
            self._when += self.tick
            self._at = (self._at + 1) % len(self._slots)
            slot, self._slots[self._at] = self._slots[self._at], set()
            self._late.extend(slot)
        self._call()

    def _call(self) -> None:
        """Call the checks whose time has come; what takes too long in the next round of the loop."""
        late, now = self._late, time.monotonic()
        until = time.perf_counter() + BUDGET
        while late:
            for look in slices().between:
                look()
            piece = time.perf_counter() + PIECE
            if piece > until + PIECE:
                self._soon.start(self._call)
                return
            while late:
                self._ask(late.popleft(), now)
                if time.perf_counter() > piece:
                    break

    def _ask(self, entry: WheelEntry, now: float) -> None:
        if entry.check is None:  # discarded by a check before it
            return
        try:
            due = entry.check(now)
        except Exception as error:
            self._loop.handle_error(entry.check, type(error), error, error.__traceback__)
            due = None
        if due is not None and entry.check is not None:
            self._insert(entry, due)
        elif entry.check is not None:
            entry.check = None
            self._left()

    def _left(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._timer.stop()

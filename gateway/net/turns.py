"""Turns of callbacks whose sockets may always have something to read: what slices.py is for greenlets.

libev calls the callbacks of all sockets that are ready before it looks at timers and at sockets again, and gevent's
greenlets get their turn. The work of such callbacks is added up; when it was `BUDGET`, the sockets that are ready then
wait in line until libev has looked, and the line gets one budget in each round of the event loop, however many wait in
it; between two of them sockets with little to do are served (`slices`). Up to a budget of work nobody waits, so sockets
that rarely have something to read do not notice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from gateway.net.slices import BUDGET, slices

if TYPE_CHECKING:
    from gevent._types import _IoWatcher, _TimerWatcher


class Turns:
    """The line of one process, made in its hub's thread. Times are in seconds."""

    def __init__(self) -> None:
        self.hub = get_hub()
        self._spent = 0.0
        self._calling = False
        self._due = False  # whether the timer is started
        self._line: OrderedDict[_IoWatcher, tuple[Callable[..., None], tuple[Any, ...]]] = OrderedDict()
        self._timer: _TimerWatcher = self.hub.loop.timer(0.0)

    def __len__(self) -> int:
        return len(self._line)

    def is_on(self, watcher: _IoWatcher, callback: Callable[..., None], *arguments: Any) -> bool:
        """Whether the callback of this watcher may work now. Otherwise it is called again when it is its turn, and not
        before that. What it has done then is to be told to `spend`."""
        if self._calling or self._spent < BUDGET:
            return True
        watcher.stop()
        self._line[watcher] = callback, arguments
        self._ask()
        return False

    def spend(self, seconds: float) -> None:
        """Count what a callback has done."""
        self._spent += seconds

    def forget(self, watcher: _IoWatcher) -> None:
        """Remove a watcher, which is going to be closed, from the line."""
        self._line.pop(watcher, None)

    def _next_round(self) -> None:
        """Called when libev has looked at sockets and timers: call those that wait, for one budget."""
        self._due = False
        self._calling = True
        until = monotonic() + BUDGET
        try:
            while self._line and monotonic() < until:
                for look in slices().between:
                    look()
                watcher, (callback, arguments) = self._line.popitem(last=False)
                watcher.start(callback, *arguments)
                callback(*arguments)
        finally:
            self._calling = False
            self._spent = 0.0
            if self._line:
                self._ask()

    def _ask(self) -> None:
        if not self._due:
            self._due = True
            self._timer.start(self._next_round)


_turns: Turns | None = None


def turns() -> Turns:
    """Return the line of this process (of this thread's hub)."""
    global _turns
    if _turns is None or _turns.hub is not get_hub():
        _turns = Turns()
    return _turns

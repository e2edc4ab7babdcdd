"""Slices of time: work that could go on for ever is done in small pieces, and between them all others are served.

gevent looks at sockets and timers only when its callbacks are done, or after fifty of them. A greenlet whose socket
always has something to read never waits, and `gevent.sleep(0)` gives way to other callbacks only: with pieces of one
millisecond it took 136 ms until another socket was looked at. A timer that is due at once makes libev look at all
sockets first, and costs two microseconds.

The work of one round of the event loop is added up over all greenlets; beyond `FREE` the rest waits in line. The line
gets one `BUDGET` for each round, however many wait in it, in pieces; between two of them sockets with little to do are
served (`between`). Where several clients' greenlets wait, each client has one called in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gevent import get_hub, getcurrent

from gateway.net.fair_line import FairLine

if TYPE_CHECKING:
    import gevent
    from gevent._types import _TimerWatcher

FREE = 0.0005  # seconds of work in a round of the event loop, before greenlets wait in line
BUDGET = 0.001  # seconds in a round for those that wait in line,
PIECE = 0.00025  # and for one of them: then sockets are looked at


class Slices:
    """The line of waiting greenlets of one process, made in its hub's thread. Times are in seconds. `between`: called
    in the hub between two pieces of work."""

    def __init__(self) -> None:
        self.hub = get_hub()
        self.between: list[Callable[[], None]] = []
        self._spent = 0.0  # in this round
        self._lines = FairLine(), FairLine()  # greenlets: the light ones, the others
        self._calling = False  # those that wait in line, until then:
        self._until = 0.0
        self._due = False  # whether the timer is started
        self._timer: _TimerWatcher = self.hub.loop.timer(0.0)

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    @property
    def over(self) -> bool:
        """Whether others have to be served. Then a greenlet must `wait` before it works."""
        return perf_counter() >= self._until if self._calling else self._spent >= FREE

    def spend(self, seconds: float) -> None:
        """Count `seconds` of work. Small amounts are added up over rounds, which costs nothing but a round now and
        then."""
        if not self._calling:  # else it is measured below
            self._spent += seconds

    def begin(self, seconds: float) -> None:
        """Let a piece of work of about so many seconds begin: at once, or where many begin, one after the other. Must
        not be called in the hub."""
        if self.over:
            self.wait(light=True)
        self.spend(seconds)

    def wait(self, light: bool = False) -> None:
        """Let others go on, and return in a later round. `light`: before those that are not light. Must not be called
        in the hub."""
        current, line = getcurrent(), self._lines[0 if light else 1]
        client = client_of(current)
        line.append(client, current)
        self._ask()
        try:
            self.hub.switch()
        except BaseException:  # it was killed while it waited
            line.discard(client, current)
            raise

    def _next_round(self) -> None:
        """Called when libev has looked at sockets and timers: wake those that wait, for one budget."""
        self._due = False
        self._spent = 0.0
        light, other = self._lines
        if not light and not other:
            return
        until = perf_counter() + BUDGET
        self._calling = True
        try:
            while light or other:
                for call in self.between:
                    call()
                self._until = perf_counter() + PIECE
                (light or other).popleft().switch()
                if perf_counter() >= until:
                    break
        finally:
            self._calling = False
        if light or other:
            self._ask()

    def _ask(self) -> None:
        if not self._due:
            self._due = True
            self._timer.start(self._next_round)


def belongs_to(greenlet: gevent.Greenlet[..., Any], client: object) -> None:
    """Let a greenlet, and those that it spawns from now on, work for a client: an object that is the same for all that
    this one has."""
    greenlet.spawn_tree_locals = {"client": client}


def client_of(greenlet: Any) -> object:
    """Return the client for whom a greenlet works; None if that was not said."""
    known = getattr(greenlet, "spawn_tree_locals", None)
    return known.get("client") if known else None


_slices: Slices | None = None


def slices() -> Slices:
    """Return the line of this process (of this thread's hub)."""
    global _slices
    if _slices is None or _slices.hub is not get_hub():
        _slices = Slices()
    return _slices

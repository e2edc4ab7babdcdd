"""Calling modules, so that one that raises, hangs or is slow harms its own flows' inspection and nothing else.

A module that raises or hangs is `Broken` to its caller, who lets that flow go on unread. A call that takes long is
logged; a module with three such calls within a minute is out: it reads nothing any more in this process.

While modules are called a timer of the kernel (ITIMER_REAL) interrupts the process four times a second. A call that has
used the processor for `HUNG` seconds by then, or has seen `BLOCKED` of these ticks, is ended by an exception in its
midst, in the same way as by ^C: it reaches loops and regular expressions of Python, and a `time.sleep`. Ticks are
counted, not seconds, as the whole process may have been stopped. What the exception cannot reach (a loop in C) the
supervisor ends with the process.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from time import monotonic, perf_counter, thread_time
from types import FrameType
from typing import Any, TypeVar

import gevent
from gevent import get_hub, getcurrent

from gateway.observe.log import get_logger

log = get_logger()

T = TypeVar("T")

SLOW = 0.05  # seconds of a processor for one call, above which it is logged
MOST_SLOW = 3  # such calls
WITHIN = 60.0  # seconds
TICK = 0.25  # seconds
HUNG = 0.4  # seconds of a processor for one call, after which it is ended
BLOCKED = 8  # ticks that a call sees, after which it is ended whatever it does
QUIET = 4  # ticks without a call, after which there are none
FRESH = 0.01  # seconds for which a reading of the processor's clock is good enough


class Broken(Exception):
    """A module has failed; the message says how, in one line. The flow is to go on without it."""


class Hung(BaseException):
    """Raised within a call that takes too long. No `except Exception` of a module stops it."""


def described(error: BaseException) -> str:
    """An error in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class Guard:
    """Calls the modules of one process."""

    def __init__(self) -> None:
        self._out: set[str] = set()
        self._slow: dict[str, deque[float]] = {}
        self._greenlet: Any = None  # of the last one that began
        self._ticks = 0
        self._idle = 0
        self._armed = False
        self._read_at = 0.0
        self._read = 0.0

    def is_out(self, name: str) -> bool:
        """Whether a module is not called any more in this process."""
        return name in self._out

    def call(self, name: str, flow: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of the module `name` for a flow. Raises Broken."""
        began = perf_counter()
        if began - self._read_at > FRESH:
            self._read_at, self._read = began, thread_time()
        if not self._armed:
            self._arm()
        before = self._greenlet, self._ticks
        self._greenlet, self._ticks = getcurrent(), 0
        try:
            return function(*arguments)
        except Hung:
            raise Broken("it hangs") from None
        except (gevent.GreenletExit, gevent.Timeout):  # not its own: the flow is ended while it waits
            raise
        except BaseException as error:
            raise Broken(described(error)) from error
        finally:
            self._greenlet, self._ticks = before
            self._idle = 0
            if perf_counter() - began > SLOW:
                self._took(name, flow, thread_time() - self._read)

    def _took(self, name: str, flow: str, seconds: float) -> None:
        """The time of this thread's processor: a machine that is busy is not the module's fault."""
        if seconds <= SLOW:
            return
        log.warning("alg.slow", module=name, flow=flow, seconds=round(seconds, 3))
        now, times = monotonic(), self._slow.setdefault(name, deque(maxlen=MOST_SLOW))
        times.append(now)
        if len(times) == MOST_SLOW and now - times[0] <= WITHIN and name not in self._out:
            self._out.add(name)
            log.error("alg.out", module=name, calls=MOST_SLOW, seconds=WITHIN)

    # --- what hangs -------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have ticks, until a second has passed without a call."""
        self._armed = True
        self._idle = 0
        try:
            signal.signal(signal.SIGALRM, self._tick)
            signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        except ValueError:
            pass  # not the main thread, as in some tests: then nothing is ended

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        greenlet = self._greenlet
        if greenlet is None:
            self._idle += 1
            if self._idle > QUIET:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._armed = False
            return
        self._ticks += 1
        if self._ticks < BLOCKED and (greenlet is not getcurrent() or thread_time() - self._read < HUNG):
            return
        self._ticks = 0
        if greenlet is getcurrent():
            raise Hung
        # It waits cooperatively, so nobody else is held up.
        get_hub().loop.run_callback(greenlet.throw, Hung)

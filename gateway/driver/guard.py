"""Calls modules so that one that raises, hangs or is slow harms the inspection of its own flows and nothing else.

If a module raises or hangs, its caller gets `Broken`, and lets that flow go on unread. A call that takes long is
logged; a module with three such calls within a minute is out: it reads nothing any more in this process.

While modules are called, a timer of the kernel (ITIMER_REAL) interrupts the process four times a second. A call that
has used the processor for `HUNG` seconds after the first of these ticks, or has seen `BLOCKED` of them, is ended by an
exception in its midst, in the same way as by ^C: that reaches loops and regular expressions of Python, and a
`time.sleep`. Ticks are counted and not seconds, because the whole process may have been stopped. What the exception
cannot reach (a loop in C) the supervisor ends with the process.
"""

from __future__ import annotations

import atexit
import signal
from collections import deque
from collections.abc import Callable
from time import monotonic, thread_time
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
HUNG = 0.2  # seconds of a processor from the first tick of a call on, after which it is ended: 0.25 to 0.75 in all
BLOCKED = 8  # ticks that a call sees, after which it is ended whatever it does
QUIET = 4  # ticks without a call, after which there are none
FRESH = 0.01  # seconds for which a reading of the processor's clock is good enough


class Broken(Exception):
    """A module has failed; the message says how, in one line. The flow must go on without the module."""


class Hung(BaseException):
    """Raised within a call that takes too long. No `except Exception` of a module stops it."""


def described(error: BaseException) -> str:
    """Describe an error in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class Alarm:
    """Ends calls that hang. One for each process, because signals are. Call `enter` before a call and `leave` after it
    with what `enter` returned: a module that waits (cooperatively) lets others be called meanwhile."""

    def __init__(self) -> None:
        self._greenlet: Any = None  # of the call under way
        self._ticks = 0  # that it has seen
        self._used = 0.0  # the processor's clock at the first of them
        self._quiet = 0  # ticks without a call
        self._armed = False

    def enter(self) -> Any:
        """Note that a call begins."""
        if not self._armed:
            self._arm()
        before, self._greenlet = self._greenlet, getcurrent()
        self._ticks = 0
        return before

    def leave(self, before: Any) -> None:
        """Note that the call has ended."""
        self._greenlet = before
        self._ticks = self._quiet = 0

    def _arm(self) -> None:
        """Start the timer. It stops when some ticks have passed without a call."""
        self._armed = True
        self._quiet = 0
        try:
            signal.signal(signal.SIGALRM, self._tick)
            signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        except ValueError:
            pass  # not the main thread, as in some tests: then nothing is ended

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        greenlet = self._greenlet
        if greenlet is None:
            self._quiet += 1
            if self._quiet > QUIET:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._armed = False
            return
        self._ticks += 1
        if self._ticks == 1:
            self._used = thread_time()
        current = greenlet is getcurrent()
        if self._ticks < BLOCKED and not (current and thread_time() - self._used >= HUNG):
            return
        self._ticks = 0
        if current:
            raise Hung
        # It waits cooperatively, so it delays no other greenlet.
        get_hub().loop.run_callback(greenlet.throw, Hung)

    def stop(self) -> None:
        """Stop the timer, because the process ends: Python then restores the signal's default action, which is to
        kill."""
        if self._armed:
            signal.setitimer(signal.ITIMER_REAL, 0)


alarm = Alarm()
atexit.register(alarm.stop)


class ModuleGuard:
    """Calls the modules of one process, or of one configuration of it, and knows which of them are out."""

    def __init__(self) -> None:
        self._out: set[str] = set()
        self._slow: dict[str, deque[float]] = {}
        self._read_at = 0.0
        self._read = 0.0
        self.ended = 0.0  # when the last call had ended, on the monotonic clock,
        self.took = 0.0  # and how many seconds it took

    def is_out(self, name: str) -> bool:
        """Whether a module is not called any more."""
        return name in self._out

    def call(self, name: str, flow: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of the module `name` for a flow. Raises Broken."""
        hung = False
        began = self.begin()
        before = alarm.enter()
        try:
            return function(*arguments)
        except Hung:
            hung = True
            raise Broken("it hangs") from None
        except (gevent.GreenletExit, gevent.Timeout):  # not its own: the flow is ended while it waits
            raise
        except BaseException as error:
            raise Broken(described(error)) from error
        finally:
            alarm.leave(before)
            self.end(name, flow, began, hung)

    def begin(self) -> float:
        """Note that a call begins. Returns the time, for `end`."""
        began = monotonic()
        if began - self._read_at > FRESH:
            self._read_at, self._read = began, thread_time()
        return began

    def end(self, name: str, flow: str, began: float, hung: bool = False) -> None:
        """Note that a call of the module `name` for a flow has ended, and count it if it was slow, or hung. A call that
        hung counts also if it did not use the processor, because all others waited for it."""
        self.ended = monotonic()
        self.took = self.ended - began
        if hung:
            self.count(name)
        elif self.took > SLOW:
            self._took(name, flow, thread_time() - self._read)

    def _took(self, name: str, flow: str, seconds: float) -> None:
        """Count the time of a call. It is processor time of this thread, because a busy machine is not the module's
        fault."""
        if seconds <= SLOW:
            return
        log.warning("alg.slow", module=name, flow=flow, seconds=round(seconds, 3))
        self.count(name)

    def count(self, name: str) -> None:
        """Count a call of a module that was slow or hung. With the third one within a minute it is out."""
        now, times = monotonic(), self._slow.setdefault(name, deque(maxlen=MOST_SLOW))
        times.append(now)
        if len(times) == MOST_SLOW and now - times[0] <= WITHIN and name not in self._out:
            self._out.add(name)
            log.error("alg.out", module=name, calls=MOST_SLOW, seconds=WITHIN)

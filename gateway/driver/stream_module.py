"""The module of one flow, as its driver calls it: within the guard, in turns with others, and for a bounded share of a
processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import gevent

from alg.api import AlgModule, Command, Event, OutlivingModule
from alg.registry import Traits
from gateway.driver.guard import Broken, Hung, ModuleGuard, alarm, described
from gateway.net.slices import slices

SMALLEST_PIECE, FIRST_PIECE, LARGEST_PIECE = 32, 256, 16384  # bytes that a module is given at a time
SHORT, LONG = 0.0001, 0.00025  # seconds of a call, below which the next piece is larger, and above which it is smaller
IO = 0.00002  # seconds that reading and sending a piece takes
MOST_COUNTED = 0.05  # seconds of one call: for more the machine is to blame, or the guard sees to it
SHORTEST_TICK = 0.01  # seconds between two ticks of a module that wants one all the time
MEMORY = 10.0  # seconds in which work is forgotten
LIGHT = 0.002  # seconds of work within the last second, up to which a flow is served before others


class Effort:
    """Measures how much work a flow's module was in the last seconds, and limits how many bytes it is given at a time.

    `share`: the share of a processor, on average over some ten seconds, beyond which the flow is `too_much`.
    """

    def __init__(self, share: float, now: float) -> None:
        self.piece = FIRST_PIECE
        self._share = share
        self._spent = 0.0  # seconds of work; each passing second takes a part of it away
        self._at = now

    def spend(self, seconds: float, now: float) -> None:
        """Count the duration of a call."""
        self._spent = self._left(now) + min(seconds, MOST_COUNTED)
        self._at = now
        if seconds > LONG:
            self.piece = max(SMALLEST_PIECE, self.piece // 2)
        elif seconds < SHORT:
            self.piece = min(LARGEST_PIECE, self.piece * 2)

    def is_light(self, now: float) -> bool:
        """Whether it is so little work that others need not be served first."""
        return self._left(now) < LIGHT

    def is_too_much(self, now: float) -> bool:
        """Whether it is more work than a flow may cost."""
        return self._left(now) > self._share * MEMORY

    def _left(self, now: float) -> float:
        return self._spent * max(0.0, 1.0 - (now - self._at) / MEMORY)


class StreamModule:
    """A module with its name, what its class declares, and the id of its flow.

    `deadline`: when it wants a `Tick`, as it was asked last. `is_broken`: whether it has failed, which its driver says.
    """

    def __init__(
        self, module: AlgModule, traits: Traits, name: str, flow: str, guard: ModuleGuard, now: Callable[[], float]
    ) -> None:
        self.module = module
        self.traits = traits
        self.name = name
        self.deadline: float | None = None
        self.is_broken = False
        self._flow = flow
        self._guard = guard
        self._now = now
        self._effort = Effort(traits.share, now())
        self._slices = slices()
        self._next_tick = 0.0
        self._last = 0.0, 0.0  # of the last call: the seconds that it took, and when it ended

    @property
    def is_out(self) -> bool:
        """Whether the module is not called any more in this process, on any flow."""
        return self._guard.is_out(self.name)

    @property
    def piece(self) -> int:
        """How many bytes it is given at a time."""
        return self._effort.piece

    def wait_for_turn(self) -> bool:
        """Wait if there was as much work in this round of the event loop as may be. Returns whether it waited."""
        if not self._slices.over:
            return False
        self._slices.wait(self._effort.is_light(self._now()))
        return True

    def handle(self, event: Event) -> Sequence[Command]:
        """Return what the module answers. Raises Broken if it fails or hangs."""
        guard = self._guard
        commands = guard.call(self.name, self._flow, self.module.handle, event)
        if not isinstance(commands, list | tuple):  # such as a generator, which has yet to run
            commands = guard.call(self.name, self._flow, tuple, commands)
        self._last = guard.took + IO, guard.ended
        return commands

    def count(self) -> bool:
        """Count what the last event has cost. Returns whether the module is more work than a flow may cost."""
        took, ended = self._last
        self._slices.spend(took)
        self._effort.spend(took, ended)
        return self._effort.is_too_much(ended)

    def ask_deadline(self) -> None:
        """Ask the module when it wants a tick. Only after it was told something, because otherwise nothing has changed.
        Raises Broken."""
        before = alarm.enter()
        try:
            deadline = self.module.deadline()
            self.deadline = None if deadline is None else max(float(deadline), self._next_tick)
        except Hung:
            raise Broken("it hangs") from None
        except (gevent.GreenletExit, gevent.Timeout):  # not its own: the flow is ended while it waits
            raise
        except BaseException as error:
            raise Broken(described(error)) from error
        finally:
            alarm.leave(before)

    def is_due(self, now: float) -> bool:
        """Whether the module is to be told the time. The next time is then later, also if it wants one at once."""
        if self.deadline is None or now < self.deadline:
            return False
        self._next_tick = now + SHORTEST_TICK
        return True

    def lives_on(self) -> bool:
        """Whether the module goes on without its flow."""
        if not self.traits.outlives or self.is_broken:
            return False
        try:
            return bool(self._guard.call(self.name, self._flow, cast(OutlivingModule, self.module).lives_on))
        except Broken:
            return False

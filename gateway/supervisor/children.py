"""The supervisor's children: started, heard, replaced when they die, ended."""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gateway.model.errors import AlgateError
from gateway.observe.log import get_logger
from gateway.process.lifeline import FromChild, Retire, ToChild
from gateway.supervisor.child import Child

log = get_logger()

KILL_MARGIN = 5.0  # seconds that a child has to end in, once it must
STABLE_AGE = 5.0  # seconds; a child that lived longer is replaced without a pause
LONGEST_PAUSE = 5.0  # seconds
PING_INTERVAL = 2.0  # seconds
SLOW = 1.0  # seconds; an answer that takes longer is logged
MOST_UNANSWERED = 5  # pings in a row; then a child hangs, and is killed and replaced


@dataclass(slots=True)
class _Restart:
    """A child that is to be started again at a time (monotonic seconds)."""

    child: Child
    at: float


class Children:
    """All children of the supervisor, watched by its `selector`. `heard(child, message)` is called with their messages.

    While `starting`, a child that ends before it was ready raises AlgateError.
    """

    def __init__(self, selector: selectors.BaseSelector, heard: Callable[[Child, FromChild], None]) -> None:
        self.starting = True
        self._selector = selector
        self._heard = heard
        self._restarts: list[_Restart] = []
        self._ending: set[Child] = set()
        self._replacing: set[Child] = set()
        self._alive: list[Child] = []
        self._next_ping = time.monotonic() + PING_INTERVAL

    def start(self, child: Child) -> None:
        """Start a child, and replace it whenever it dies, until `end`."""
        self._ending.discard(child)
        child.start()
        self._alive.append(child)
        assert child.lifeline is not None
        self._selector.register(child.lifeline, selectors.EVENT_READ, lambda: self._on_lifeline(child))
        log.info("process.start", child=child.name, pid=child.pid)

    def start_soon(self, child: Child) -> None:
        """Start a child with the next `tick`. If it cannot be started, as while a package is replaced, that is tried
        again."""
        self._ending.discard(child)
        self._restarts.append(_Restart(child, time.monotonic()))

    def due(self) -> list[float]:
        """Return the time (monotonic) at which `tick` has something to do."""
        return [self._next_ping, *(restart.at for restart in self._restarts)]

    def tick(self, now: float) -> None:
        """Do what is due."""
        for restart in [r for r in self._restarts if r.at <= now]:
            self._restarts.remove(restart)
            try:
                self.start(restart.child)
            except (AlgateError, OSError) as error:
                log.error("start.failed", child=restart.child.name, reason=str(error))
                self._restarts.append(_Restart(restart.child, now + LONGEST_PAUSE))
        if now >= self._next_ping:
            self._next_ping = now + PING_INTERVAL
            self._ping()

    def _ping(self) -> None:
        """Ask the children whether they are alive. Counted in questions and not in seconds, because this process may
        have been stopped itself."""
        for child in [child for child in self._alive if child.ready]:
            if child.unanswered >= MOST_UNANSWERED:
                log.error("process.hung", child=child.name, pid=child.pid, seconds=MOST_UNANSWERED * PING_INTERVAL)
                self.kill(child)
            else:
                child.ping()

    @property
    def answering(self) -> bool:
        """Whether all children that are ready have answered recently."""
        return all(child.unanswered < MOST_UNANSWERED for child in self._alive)

    def kill(self, child: Child) -> None:
        """Kill a child (SIGKILL). A new one starts in its place."""
        child.signal(signal.SIGKILL)

    def replace(self, child: Child) -> None:
        """End a child (SIGTERM). When it has ended, a new one starts in its place, with the configuration of that
        moment."""
        self._replacing.add(child)
        child.signal(signal.SIGTERM)

    def tell_all(self, message: ToChild) -> None:
        """Send a message to all children that run."""
        for child in self._alive:
            child.tell(message)

    def end(
        self, children: Sequence[Child], seconds: float, poll: Callable[[float], None], retire: float | None = None
    ) -> None:
        """End children: SIGTERM, and SIGKILL after `seconds`. Returns when all have ended. `poll(until)` handles events
        meanwhile.

        `retire`: for workers, the seconds that their flows get; without it the configuration with which they were
        started counts.
        """
        self._ending.update(children)
        self._replacing.difference_update(children)
        self._restarts = [restart for restart in self._restarts if restart.child not in self._ending]
        for child in children:
            if retire is None:
                child.signal(signal.SIGTERM)
            else:
                child.tell(Retire(retire))
        until = time.monotonic() + seconds
        while any(child.lifeline for child in children):
            if time.monotonic() >= until:
                for child in (c for c in children if c.lifeline):
                    log.error("process.killed", child=child.name, pid=child.pid)
                    child.signal(signal.SIGKILL)
                until += KILL_MARGIN
            poll(until)

    def abandon(self, children: Sequence[Child], poll: Callable[[float], None]) -> None:
        """Let children believe that the supervisor is dead: they end at once and clean nothing up. Returns when they
        have ended."""
        self._ending.update(children)
        self._restarts = [restart for restart in self._restarts if restart.child not in self._ending]
        for child in children:
            child.abandon()
        while any(child.lifeline for child in children):
            poll(time.monotonic() + KILL_MARGIN)

    def _on_lifeline(self, child: Child) -> None:
        was_ready, before = child.ready, child.unanswered
        try:
            message = child.hear()
        except BlockingIOError:
            return
        except msgspec.DecodeError as error:  # it was taken over: nothing that it says is to end us too
            log.error("process.nonsense", child=child.name, pid=child.pid, error=str(error)[:200])
            self.kill(child)
            return
        if message is not None:
            if before and child.answered_after > SLOW:
                log.warning("process.slow", child=child.name, pid=child.pid, seconds=round(child.answered_after, 3))
            self._heard(child, message)
            return
        pid, age = child.pid, child.age
        assert child.lifeline is not None
        self._selector.unregister(child.lifeline)
        code = child.reap()
        self._alive.remove(child)
        if child in self._ending or child in self._replacing:
            log.info("process.end", child=child.name, pid=pid, code=code)
            if child in self._replacing:
                self._replacing.remove(child)
                self._restarts.append(_Restart(child, time.monotonic()))
            return
        log.error("process.died", child=child.name, pid=pid, code=code, age=round(age, 3))
        if self.starting and not was_ready:
            raise AlgateError(f"{child.name} ended with code {code} before it was ready (its reason stands above)")
        child.restarts += 1
        pause = 0.0 if age > STABLE_AGE else min(LONGEST_PAUSE, 0.05 * 2 ** min(child.restarts - 1, 10))
        self._restarts.append(_Restart(child, time.monotonic() + pause))

"""Modules that outlive their flows: what a running call has advertised stays open until the call ends.

A call that was begun over TCP does not end with its connection, nor because the driver stops reading it. So a module
that declares it (`alg.api.OutlivingModule`) goes on without bytes: it is told the time and what its conversations
carry, may change and close them, and opens nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import gevent
import structlog
from gevent.event import Event as Wakeup

from alg.api import (
    AlgModule,
    ClosePinhole,
    Command,
    Event,
    Note,
    Opened,
    OutlivingModule,
    Tick,
    UpdateConversation,
    UpdateMapping,
)
from gateway.driver.activity import ActivityWatch
from gateway.driver.conversations import Conversations
from gateway.driver.guard import Broken, ModuleGuard, described
from gateway.driver.notes import is_to_log
from gateway.flow.table import Flow

log = structlog.get_logger()

MOST = 4096  # modules in a process; of more, the oldest ends
SHORTEST_TICK = 0.01  # seconds between two ticks of a module that wants one all the time


class Survivor:
    """A module without its flow. `conversations`: what it still has open."""

    def __init__(
        self, flow: Flow, module: AlgModule, look_every: float | None, guard: ModuleGuard, now: Callable[[], float]
    ) -> None:
        self.flow = flow
        self.module = module
        self.conversations: Conversations
        self._look_every = look_every
        self._name = flow.module or ""
        self._guard = guard
        self._now = now
        self._activity: ActivityWatch
        self._changed = Wakeup()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def begin(self, conversations: Conversations, over: Callable[[], None]) -> None:
        """Go on with these conversations. `over` is called at the end, when they are closed."""
        self.conversations = conversations
        self._activity = ActivityWatch(conversations, self._look_every, self.tell, self._now)
        self._greenlet = gevent.spawn(self._run, over)

    def tell(self, event: Event) -> None:
        """Pass an event to the module, and carry out the commands that need no flow."""
        if isinstance(event, Opened):  # what was asked for before the end, and was not advertised
            self.conversations.close(event.ref)
            return
        try:
            self._do_all(self._guard.call(self._name, self.flow.id, self._answer_to, event))
        except Broken as broken:
            self._broken(str(broken))
        except Exception as error:  # what is no command, or makes no sense
            self._broken(described(error))
        self._changed.set()

    def _answer_to(self, event: Event) -> Sequence[Command]:
        return tuple(self.module.handle(event))  # what is a generator has yet to run

    def _do_all(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case UpdateConversation() | UpdateMapping():
                    self.conversations.update(command)
                case ClosePinhole(ref):
                    self.conversations.close(ref)
                case Note(code, detail) if is_to_log(command):
                    log.info("alg.note", flow=self.flow.id, code=code, detail=detail)

    def _broken(self, reason: str) -> None:
        log.error("alg.broken", flow=self.flow.id, module=self._name, reason=reason)
        self.end()

    def end(self) -> None:
        """End the module now."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self, over: Callable[[], None]) -> None:
        try:
            while not self._guard.is_out(self._name) and self._lives_on():
                self._changed.clear()
                self._changed.wait(self._timeout())
                self._activity.tick()
                deadline = self._deadline()
                if deadline is not None and deadline <= self._now():
                    self.tell(Tick(self._now()))
                    gevent.sleep(SHORTEST_TICK)
        except Broken as broken:
            log.error("alg.broken", flow=self.flow.id, module=self._name, reason=str(broken))
        finally:
            self.conversations.close_all()
            over()

    def _lives_on(self) -> bool:
        return bool(self._guard.call(self._name, self.flow.id, cast(OutlivingModule, self.module).lives_on))

    def _deadline(self) -> float | None:
        return self._guard.call(self._name, self.flow.id, self._wanted)

    def _wanted(self) -> float | None:
        at = self.module.deadline()
        return None if at is None else float(at)

    def _timeout(self) -> float | None:
        pending = [at for at in (self._deadline(), self._activity.deadline()) if at is not None]
        return max(0.0, min(pending) - self._now()) if pending else None


class Afterlife:
    """The survivors of a process."""

    def __init__(self) -> None:
        self._survivors: dict[str, Survivor] = {}

    def __len__(self) -> int:
        return len(self._survivors)

    def __iter__(self) -> Iterator[Survivor]:
        return iter(list(self._survivors.values()))

    def add(self, survivor: Survivor, conversations: Conversations) -> None:
        """Let a module go on without its flow."""
        while len(self._survivors) >= MOST:
            self._survivors.pop(next(iter(self._survivors))).end()
        key = survivor.flow.id
        self._survivors[key] = survivor
        log.info("alg.outlives", flow=key, module=survivor.flow.module, conversations=len(conversations))
        survivor.begin(conversations, lambda: self._over(key, survivor))

    def _over(self, key: str, survivor: Survivor) -> None:
        if self._survivors.get(key) is survivor:
            del self._survivors[key]

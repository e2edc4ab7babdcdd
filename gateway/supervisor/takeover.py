"""Upgrade: one supervisor hands its listeners, its admin sockets and the broker's table over to another one.

The old one goes on until the new one has started all that can be started beside it, and takes everything back if the
new one then fails. Its workers end with their flows.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from gateway.model.errors import AlgateError
from gateway.observe.log import get_logger
from gateway.process import lifeline
from gateway.process.lifeline import Done, FromChild, Go
from gateway.supervisor.child import Child
from gateway.supervisor.children import KILL_MARGIN, Children
from gateway.supervisor.crew import Crew
from gateway.supervisor.heritage import Channel, Heir, Heritage
from gateway.supervisor.listeners import LINGER, Listeners, places
from gateway.supervisor.run_dir import RunDir

log = get_logger()

DEADLINE = 90.0  # seconds that the new version has to get ready
SWITCH_DEADLINE = 20.0  # seconds in which it has to begin, once the old one has let go
SETTLE = 0.5  # seconds in which children notice that their supervisor is dead

Poll = Callable[[float], None]


class HandOver:
    """The side of the old supervisor."""

    def __init__(
        self, selector: selectors.BaseSelector, run_dir: RunDir, crew: Crew, children: Children, poll: Poll
    ) -> None:
        self._run_dir = run_dir
        self._selector = selector
        self._crew = crew
        self._children = children
        self._poll = poll

    def run(self, ticket: str, admin: socket.socket, on_admin: Callable[[], None]) -> tuple[Channel, int]:
        """Hand over. Returns the channel to the new supervisor, and its pid. `admin`: the socket that it will serve in
        our place. Raises AlgateError with the reason if all is as before."""
        ours, theirs = lifeline.pair()
        channel = Channel(ours)
        with theirs:
            try:
                heir = self._crew.heritage(theirs.fileno(), ticket, admin.fileno()).bequeath()
            except OSError as error:  # as while a package is replaced
                ours.close()
                raise AlgateError(f"the new version cannot be started: {error}") from error
        self._selector.register(ours, selectors.EVENT_READ, channel.hear)
        log.info("upgrade.start", pid=heir.pid)
        try:
            self._await(channel, "prepared", DEADLINE)
        except AlgateError:
            self._give_up(channel, heir)
            raise
        self._selector.unregister(admin)
        self._children.end(self._crew.rest, KILL_MARGIN, self._poll)
        if self._crew.broker:
            self._children.abandon([self._crew.broker], self._poll)  # so that its table stays
        channel.say("go")
        try:
            self._await(channel, "ready", SWITCH_DEADLINE)
        except AlgateError:
            self._give_up(channel, heir)
            self._selector.register(admin, selectors.EVENT_READ, on_admin)
            for child in [*([self._crew.broker] if self._crew.broker else []), *self._crew.rest]:
                self._children.start_soon(child)
            raise
        heir.close()
        return channel, heir.pid

    def _await(self, channel: Channel, word: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while word not in channel.words:
            if channel.failure is not None:
                raise AlgateError(f"the new version cannot take over: {channel.failure}")
            if time.monotonic() >= until:
                raise AlgateError(f"the new version cannot take over: it was not ready after {seconds:g} s")
            self._poll(until)

    def _give_up(self, channel: Channel, heir: Heir) -> None:
        """End the new supervisor, if it is still alive. Its children end with it."""
        self._selector.unregister(channel.sock)
        channel.sock.close()
        heir.end(KILL_MARGIN)
        self._poll(time.monotonic() + SETTLE)
        self._run_dir.remove_dead(heir.pid)


class TakeOver:
    """The side of the new supervisor. `heard` takes messages of children."""

    def __init__(
        self, heritage: Heritage, channel: Channel, crew: Crew, children: Children, listeners: Listeners, poll: Poll
    ) -> None:
        self.ticket = heritage.ticket
        self.channel = channel
        self._crew = crew
        self._children = children
        self._listeners = listeners
        self._poll = poll
        self._awaited: set[Child] = set()

    def heard(self, child: Child, message: FromChild) -> None:
        """Take a child's answer."""
        if isinstance(message, Done):
            self._awaited.discard(child)

    def run(self) -> None:
        """When the first children are ready, make the old version let go, and begin to serve. Raises AlgateError."""
        self.channel.say("prepared")
        self._wait(lambda: "go" in self.channel.words, DEADLINE, "the old version did not let go")
        self._crew.standby = False
        if self._crew.broker:
            self._go([self._crew.broker])
        self._listeners.listen()
        self._go(self._crew.workers)
        gone = self._listeners.places() - places(self._crew.config).keys()
        if gone:
            self._listeners.refuse(gone)
            until = time.monotonic() + LINGER
            while time.monotonic() < until:
                self._poll(until)
            self._listeners.discard(gone)
        for child in self._crew.rest:
            self._children.start(child)
        self._wait(lambda: all(child.ready for child in self._crew), SWITCH_DEADLINE, "not all processes are ready")

    def _go(self, children: list[Child]) -> None:
        self._awaited = set(children)
        for child in children:
            child.tell(Go())
        self._wait(lambda: not self._awaited, SWITCH_DEADLINE, "a process did not begin")

    def _wait(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= until or self.channel.ended:
                raise AlgateError(otherwise)
            self._poll(until)

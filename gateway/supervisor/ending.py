"""The ways in which a supervisor ends: it drains, retires in favour of the next version, or gives up taking over."""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable

from gateway.observe.log import get_logger
from gateway.supervisor.children import KILL_MARGIN, Children
from gateway.supervisor.crew import Crew
from gateway.supervisor.heritage import Channel
from gateway.supervisor.listeners import Listeners

log = get_logger()

FOREVER = 1e9  # seconds
STOP_LINGER = 0.1  # seconds in which clients that connect at the very end are still accepted


class Elder:
    """The supervisor of the previous version, while its flows last. `channel`: the channel to it, if there is one."""

    def __init__(self, channel: Channel | None, selector: selectors.BaseSelector, ended: Callable[[], None]) -> None:
        self._channel = channel
        self._selector = selector
        self._ended = ended
        if channel is not None:
            selector.register(channel.sock, selectors.EVENT_READ, self._hear)

    @property
    def lives(self) -> bool:
        """Whether there is a previous version."""
        return self._channel is not None

    def say(self, word: str) -> None:
        """Send it a word of `Channel`, if it is alive."""
        if self._channel is not None:
            self._channel.say(word)

    def _hear(self) -> None:
        channel = self._channel
        assert channel is not None
        channel.hear()
        if channel.ended:
            self._selector.unregister(channel.sock)
            channel.sock.close()
            self._channel = None
            self._ended()


class Ending:
    """Ends one supervisor. `poll(until)` handles events meanwhile."""

    def __init__(
        self, crew: Crew, children: Children, listeners: Listeners, elder: Elder, poll: Callable[[float], None]
    ) -> None:
        self._crew = crew
        self._children = children
        self._listeners = listeners
        self._elder = elder
        self._poll = poll

    def drain(self, patience: float) -> None:
        """Accept nothing more, let flows end within `patience` seconds, then end the broker, which removes its
        table."""
        log.info("drain", deadline=patience)
        self._listeners.refuse(self._listeners.places())
        until = time.monotonic() + STOP_LINGER
        while time.monotonic() < until:
            self._poll(until)
        self._listeners.discard(self._listeners.places())
        if patience < FOREVER:
            self._elder.say("stop")
        self._children.end(self._crew.workers, patience + KILL_MARGIN, self._poll_and_dismiss, patience)
        # The flows of an earlier version use our broker; and what stops us (systemd) kills it when we have ended.
        until = time.monotonic() + patience + KILL_MARGIN
        while self._elder.lives and time.monotonic() < until:
            self._poll(until)
        clients = [child for child in (self._crew.packets, self._crew.portmap) if child]  # of the broker
        self._children.end(clients, KILL_MARGIN, self._poll)
        last = [child for child in (self._crew.broker, self._crew.console) if child]  # it shows the draining
        self._children.end(last, KILL_MARGIN, self._poll)
        log.info("stopped")

    def retire(
        self, successor: Channel, selector: selectors.BaseSelector, seconds: float, reload: Callable[[], None]
    ) -> None:
        """Let our flows end within `seconds`. Everything else, the listeners included, belongs to the successor; when
        that one ends, our flows are cut soon. `reload`: reads the configuration again."""
        log.info("retire", deadline=seconds)
        obey = {"reload": reload, "stop": self.hurry, "cut": self.cut}
        alone = False

        def poll(until: float) -> None:
            nonlocal alone
            self._poll_and_dismiss(until)
            for word, action in obey.items():
                if word in successor.words:
                    successor.words.remove(word)
                    action()
            if successor.ended and not alone:
                alone = True
                selector.unregister(successor.sock)
                self.hurry()

        self._children.end(self._crew.workers, seconds + KILL_MARGIN, poll, seconds)
        while self._elder.lives and not alone:  # the successor learns by our end that its workers have gone too
            poll(time.monotonic() + KILL_MARGIN)
        log.info("stopped")

    def abandon(self) -> None:
        """Give up taking over. Nothing of what the previous version has is touched."""
        if self._crew.broker:
            self._children.abandon([self._crew.broker], self._poll)
        self._children.end([*self._crew.workers, *self._crew.rest], KILL_MARGIN, self._poll)

    def hurry(self) -> None:
        """Limit the time of the flows that are left, ours and an earlier version's, to what is configured."""
        for child in self._crew.workers:
            child.signal(signal.SIGTERM)
        self._elder.say("stop")

    def cut(self) -> None:
        """End the flows that are left, ours and an earlier version's, now."""
        log.warning("drain.cut")
        for child in self._crew.workers:
            child.signal(signal.SIGKILL)
        self._elder.say("cut")

    def _poll_and_dismiss(self, until: float) -> None:
        self._poll(until)
        self._crew.dismiss(self._crew.workers)

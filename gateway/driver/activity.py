"""Tells a module what its conversations have carried (`alg.api.Activity`), if the backend of pinholes counts."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from alg.api import Activity
from gateway.driver.conversations import Conversations


class ActivityWatch:
    """Asks the backend every `every` seconds (None: never) while there is a conversation. `tell` is called from a
    greenlet.

    `now`: the clock of `tick` and `deadline`.
    """

    def __init__(
        self,
        conversations: Conversations,
        every: float | None,
        tell: Callable[[Activity], None],
        now: Callable[[], float],
    ) -> None:
        self._conversations = conversations
        self._every = every
        self._tell = tell
        self._now = now
        self._at = now()

    def deadline(self) -> float | None:
        """Return when `tick` has something to do; None: not before there is a conversation."""
        return self._at if self._every is not None and len(self._conversations) else None

    def tick(self) -> None:
        """Ask the backend, if it is time."""
        at, now = self.deadline(), self._now()
        if self._every is not None and at is not None and at <= now:
            self._at = now + self._every
            gevent.spawn(self._ask)

    def _ask(self) -> None:
        for ref, packets_in, packets_out in self._conversations.traffic():
            self._tell(Activity(ref, packets_in, packets_out, self._now()))

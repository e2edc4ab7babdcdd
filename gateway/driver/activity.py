"""Tells a module what its conversations have carried (`alg.api.Activity`), if the backend of pinholes counts."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from alg.api import Activity
from gateway.driver.conversations import Conversations


class ActivityWatch:
    """Asks the backend every `every` seconds (None: never) while there is a conversation. `tell` is called from a
    greenlet, and before it `moved`, where any of them has carried something since the last time.

    `now`: the clock of `tick` and `deadline`. `first`: when it asks for the first time; None: at once.
    """

    def __init__(
        self,
        conversations: Conversations,
        every: float | None,
        tell: Callable[[Activity], None],
        now: Callable[[], float],
        first: float | None = None,
        moved: Callable[[], None] | None = None,
    ) -> None:
        self._conversations = conversations
        self._every = every
        self._tell = tell
        self._now = now
        self._at = now() if first is None else first
        self._moved = moved
        self._carried: dict[int, tuple[int, int]] = {}

    def deadline(self) -> float | None:
        """Return when `tick` has something to do; None: not before there is a conversation."""
        return self._at if self._every is not None and len(self._conversations) else None

    def tick(self) -> None:
        """Ask the backend, if it is time."""
        at, now = self.deadline(), self._now()
        if self._every is not None and at is not None and at <= now:
            self._at = now + self._every
            gevent.spawn(self.look)

    def look(self) -> None:
        """Tell what the conversations have carried. Waits for the backend."""
        counted = {ref: (came, went) for ref, came, went in self._conversations.traffic()}
        if self._moved is not None and any(
            packets != self._carried.get(ref, (0, 0)) for ref, packets in counted.items()
        ):
            self._moved()
        self._carried = counted
        for ref, packets in counted.items():
            self._tell(Activity(ref, *packets, self._now()))

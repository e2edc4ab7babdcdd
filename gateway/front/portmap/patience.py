"""Limits for a router above that does not answer, or that changes its answers all the time. Pure: times are arguments,
monotonic, in seconds."""

from __future__ import annotations

WATCH = 15.0
"""Seconds between two looks at the router above: whether it is as it was, and whether one of the mappings is. Neither
is everything asked for again more often than that, nor are clients told."""

MOST_UNANSWERED = 4  # looks that it may leave unanswered
MUTE = 5.0
"""Seconds for which a router that has left a question for a mapping unanswered is not asked by clients again: else each
of them would wait for it, and together they would be all that the process waits for."""


class Patience:
    """Counts what the router above leaves unanswered, and how often what it says makes work.

    `news`: clients are to be told when all is asked for. `moved`: the router's public address is another one, so that
    everything is to be asked for again.
    """

    def __init__(self) -> None:
        self.news = self.moved = False
        self._unanswered = 0
        self._mute = self._notified = self._followed = -WATCH

    def answered(self) -> None:
        """Note that the router has answered."""
        self._unanswered = 0

    def unanswered(self, now: float) -> None:
        """Note that the router has not answered a request for a mapping."""
        self._unanswered += 1
        self._mute = now + MUTE

    def is_gone(self) -> bool:
        """Note a look that it has left unanswered, and return whether that is enough."""
        self._unanswered += 1
        return self._unanswered >= MOST_UNANSWERED

    def may_ask(self, now: float) -> bool:
        """Whether a client's request is worth a question."""
        return now >= self._mute

    def may_follow(self, now: float) -> bool:
        """Whether all mappings may be asked for again now, because the public address has changed. If so, that is
        counted."""
        if not self.moved or now < self._followed + WATCH:
            return False
        self.moved, self.news, self._followed = False, True, now
        return True

    def may_tell(self, now: float) -> bool:
        """Whether clients may be told of a change now. If so, that is counted."""
        if not self.news or now < self._notified + WATCH:
            return False
        self.news, self._notified = False, now
        return True

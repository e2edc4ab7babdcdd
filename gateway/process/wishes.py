"""What the supervisor is asked to do, and does when its hands are free. Who asks gets a ticket, to ask later with."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import AlgateError, ConfigError
from gateway.observe.admin_wire import Rows

REMEMBERED = 16  # outcomes


class Wishes:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[int, str]] = deque()
        self._outcomes: dict[str, dict[str, Any]] = {}

    def add(self, wish: str) -> Rows:
        """Remember a wish; its ticket."""
        number = next(self._numbers)
        self._waiting.append((number, wish))
        return [{"ticket": str(number)}]

    def outcome(self, ticket: str) -> Rows:
        """What has become of it; no row: nothing yet. With "error" it was not done; "usage": whether that is the fault
        of the configuration."""
        return [self._outcomes[ticket]] if ticket in self._outcomes else []

    def grant(self, by: Mapping[str, Callable[[str], dict[str, Any]]]) -> None:
        """Do all that waits; `by` says how, and is told the ticket. An AlgateError is the outcome."""
        while self._waiting:
            number, wish = self._waiting.popleft()
            try:
                outcome = by[wish](str(number))
            except AlgateError as error:
                outcome = {"error": str(error), "usage": isinstance(error, ConfigError)}
            self.remember(str(number), outcome)

    def remember(self, ticket: str, outcome: dict[str, Any]) -> None:
        """What has become of a wish, also of one that was told to an earlier version."""
        self._outcomes[ticket] = outcome
        self._numbers = itertools.count(max(next(self._numbers), int(ticket) + 1))
        if len(self._outcomes) > REMEMBERED:
            del self._outcomes[next(iter(self._outcomes))]

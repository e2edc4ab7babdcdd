"""What the supervisor is asked to do, and does when its hands are free. Who asks gets a ticket, to ask later with."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.admin import Rows

REMEMBERED = 16  # outcomes
_UNKNOWN = {"error": "what became of it is not known: another version may have taken over; ask again", "usage": False}


class Wishes:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}  # by ticket; the first may be under way
        self._outcomes: dict[str, dict[str, Any]] = {}

    def add(self, wish: str) -> Rows:
        """Remember a wish; its ticket, like no other that any version has given."""
        ticket = secrets.token_hex(8)
        self._waiting[ticket] = wish
        return [{"ticket": ticket}]

    def outcome(self, ticket: str) -> Rows:
        """What has become of it; no row: nothing yet. With "error" it was not done; "usage": whether that is the fault
        of the configuration."""
        if ticket in self._waiting:
            return []
        return [self._outcomes.get(ticket, _UNKNOWN)]

    def grant(self, by: Mapping[str, Callable[[str], dict[str, Any]]]) -> bool:
        """Do the next one that waits; False: there is none. `by` says how, and is told the ticket. An AlgateError or
        OSError is the outcome."""
        if not self._waiting:
            return False
        ticket, wish = next(iter(self._waiting.items()))
        try:
            outcome = by[wish](ticket)
        except (AlgateError, OSError) as error:
            outcome = {"error": str(error), "usage": isinstance(error, ConfigError)}
        del self._waiting[ticket]
        self.remember(ticket, outcome)
        return True

    def remember(self, ticket: str, outcome: dict[str, Any]) -> None:
        """What has become of a wish, also of one that was told to an earlier version."""
        self._outcomes[ticket] = outcome
        if len(self._outcomes) > REMEMBERED:
            del self._outcomes[next(iter(self._outcomes))]

"""Requests to the supervisor, which it carries out one after the other. A caller gets a ticket, with which it polls for
the outcome."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from gateway.model.errors import AlgateError, ConfigError
from gateway.observe.admin import Rows

REMEMBERED = 16  # outcomes
_UNKNOWN = {"error": "what became of it is not known: another version may have taken over; ask again", "usage": False}


class Requests:
    """The requests, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}  # by ticket; the first may be under way
        self._under_way = ""  # the ticket of that
        self._outcomes: dict[str, dict[str, Any]] = {}

    def add(self, verb: str) -> Rows:
        """Add a request, and return its ticket, which is unique over all versions."""
        ticket = secrets.token_hex(8)
        self._waiting[ticket] = verb
        return [{"ticket": ticket}]

    def add_by_signal(self, verb: str) -> None:
        """Add a request whose outcome is not asked for, unless an equal one waits that has not begun."""
        if verb not in (waiting for ticket, waiting in self._waiting.items() if ticket != self._under_way):
            self.add(verb)

    def outcome(self, ticket: str) -> Rows:
        """Return the outcome of a request as rows; no rows: there is none yet. "error": why it failed; "usage": whether
        the configuration is at fault."""
        if ticket in self._waiting:
            return []
        return [self._outcomes.get(ticket, _UNKNOWN)]

    def carry_out(self, by: Mapping[str, Callable[[str], dict[str, Any]]]) -> bool:
        """Carry out the next request. Returns False if there is none. `by` says how, and gets the ticket. An
        AlgateError or OSError is the outcome."""
        if not self._waiting:
            return False
        ticket, verb = next(iter(self._waiting.items()))
        self._under_way = ticket
        try:
            outcome = by[verb](ticket)
        except (AlgateError, OSError) as error:
            outcome = {"error": str(error), "usage": isinstance(error, ConfigError)}
        finally:
            self._under_way = ""
        del self._waiting[ticket]
        self.remember(ticket, outcome)
        return True

    def remember(self, ticket: str, outcome: dict[str, Any]) -> None:
        """Store the outcome of a request, also of one that an earlier version got."""
        self._outcomes[ticket] = outcome
        if len(self._outcomes) > REMEMBERED:
            del self._outcomes[next(iter(self._outcomes))]

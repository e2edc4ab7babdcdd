"""Which client may have which mapping, as the rules say (command "map"), and how many each rule has permitted."""

from __future__ import annotations

import time
from collections.abc import Callable

from alg.address import Endpoint
from gateway.front.portmap.table import MappingEvent, MappingKey, Refusal
from gateway.model.requests import ConnectRequest
from gateway.policy.decide import Decision
from gateway.policy.limits import LimitReached, RuleLimits, Session

LONG = 1800  # seconds until it is of use to ask again, where a rule denies


class Permits:
    """Asks the rules (`decide`), and counts the mappings for the rules that permit them. `identify`: which addresses
    are one client."""

    def __init__(self, decide: Callable[[ConnectRequest], Decision], identify: Callable[[str], str] = str) -> None:
        self._decide = decide
        self._limits = RuleLimits(identify=identify)
        self._sessions: dict[MappingKey, Session] = {}

    def enter(self, key: MappingKey) -> None:
        """Count a mapping for the rule that permits it, unless it is counted. Raises Refusal "denied"."""
        client, _, port = key
        decision = self._decide(ConnectRequest("map", Endpoint(client, port), client, port))
        if not decision.permit:
            raise Refusal("denied", f"by {decision.rule}", LONG)
        if key in self._sessions:
            return
        try:
            self._sessions[key] = self._limits.enter(decision, client, time.monotonic())
        except LimitReached as limit:
            raise Refusal("denied", f"{decision.rule}: {limit}") from limit

    def leave(self, key: MappingKey) -> None:
        """Stop counting a mapping."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.release()

    def on_event(self, event: MappingEvent) -> None:
        """Stop counting a mapping that has ended. A listener of the table."""
        if event.mapping is not None and event.what == "closed":
            self.leave(event.mapping.key)

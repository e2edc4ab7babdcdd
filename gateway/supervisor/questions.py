"""The questions that the supervisor answers itself: those of the command line, at its own socket, and those of the
console, which come over its lifeline."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.host.samples import QueueSamples
from gateway.observe.admin import Rows, answer
from gateway.observe.counters import recent_rows
from gateway.observe.doorkeeper import Doorkeeper
from gateway.observe.metrics import Sample, metrics_row
from gateway.process.lifeline import Ask
from gateway.supervisor.child import Child
from gateway.supervisor.crew import Crew
from gateway.supervisor.desk import Desk
from gateway.supervisor.requests import Requests
from gateway.supervisor.run_dir import RunDir
from gateway.supervisor.state import State
from gateway.supervisor.upkeep import Upkeep


class Questions:
    """Answers questions about the supervisor and its children.

    `admin`: the socket of the command line; `state`: returns the supervisor's state.
    A reload, an upgrade or a drain that is asked for is noted in `requests`.
    """

    def __init__(
        self, admin: socket.socket, run_dir: RunDir, crew: Crew, upkeep: Upkeep, state: Callable[[], State]
    ) -> None:
        admin.setblocking(False)
        self.admin = admin
        self._doorkeeper = Doorkeeper()
        self.requests = Requests()
        self._crew = crew
        self._rules = upkeep.rules
        self._certificates = upkeep.certificates
        self._state = state
        self._queue = QueueSamples()
        self._verbs: dict[str, Callable[[], Rows]] = {
            **{verb: partial(self.requests.add, verb) for verb in ("reload", "upgrade", "drain")},
            "leave_rules": self._on_rules_removed,
            "change_rules": self._on_rules_changing,
            "keep_rules": self._on_rules_applied,
            "status": self.status,
            "metrics": self._metrics,
            "events": recent_rows,
        }
        self._desk = Desk(run_dir, self._verbs)

    def accept(self) -> None:
        """Accept and answer a question of the command line. To be called when `admin` is readable."""
        connection = self._doorkeeper.accept(self.admin)
        if connection is not None:
            answer(connection, self._verbs, {"outcome": self.requests.outcome})

    def serve(self, child: Child, ask: Ask) -> None:
        """Send a question of a child, which only the console may ask."""
        self._desk.serve(child, ask)

    def status(self) -> list[dict[str, Any]]:
        """Return the row of `algate status`."""
        state = self._state()
        row = {"process": "supervisor", "pid": os.getpid(), "state": state.shown, "rules": self._rules.status()}
        row["obstacle"] = self._rules.obstacle()
        row["children"] = {child.name: {"pid": child.pid, "restarts": child.restarts} for child in self._crew}
        return [row]

    def close(self) -> None:
        """Answer nothing any more."""
        self.admin.close()
        self._doorkeeper.close()
        self._queue.close()

    def _on_rules_removed(self) -> Rows:
        self._rules.leave()
        return [{}]

    def _on_rules_changing(self) -> Rows:
        self._rules.change()
        return [{}]

    def _on_rules_applied(self) -> Rows:
        self._rules.applied()
        return [{}]

    def _metrics(self) -> list[dict[str, Any]]:
        restarts: list[Sample] = [
            (("algate_process_restarts_total", child.name), child.restarts) for child in self._crew
        ]
        answers: list[Sample] = [
            (("algate_process_ping_seconds", child.name), round(child.answered_after, 6)) for child in self._crew
        ]
        more = [*self._rules.samples(), *self._queue.samples(self._crew.config), *self._certificates.samples()]
        return [metrics_row("supervisor", [*restarts, *answers, *more])]

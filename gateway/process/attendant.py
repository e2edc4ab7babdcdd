"""What the packets and the portmap process have in common: another configuration replaces them, so the supervisor has
little to say to them, and the command line asks them by a socket of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import gevent
import gevent.socket as gsocket

from gateway.observe.admin import Rows, answer
from gateway.observe.log import get_logger
from gateway.process.boot import Boot
from gateway.process.lifeline import Ping, Pong, Ready, Report, hear_supervisor, send

log = get_logger()

PAUSE = 0.1  # seconds until a question is accepted again, after that has failed


class Attendant:
    """Answers the supervisor's messages and the questions of the command line, in greenlets of its own.

    `verbs`: what can be asked; "status" among them gives the row that the supervisor's Report logs. `by_id`: the
    questions that name something.
    """

    def __init__(
        self,
        boot: Boot,
        verbs: Mapping[str, Callable[[], Rows]],
        by_id: Mapping[str, Callable[[str], Rows]] | None = None,
    ) -> None:
        self._lifeline = gsocket.socket(fileno=boot.lifeline)
        self._admin = gsocket.socket(fileno=boot.admin)
        self._verbs = verbs
        self._by_id = by_id

    def start(self) -> None:
        """Begin to answer."""
        gevent.spawn(self._serve_admin)
        gevent.spawn(self._watch_supervisor)

    def ready(self) -> None:
        """Report to the supervisor that this process serves."""
        send(self._lifeline, Ready())

    def _serve_admin(self) -> None:
        serve = partial(answer, verbs=self._verbs, by_id=self._by_id)
        failing = False
        while True:
            try:
                connection, _ = self._admin.accept()
            except OSError as error:
                if not failing:
                    log.warning("accept.failed", reason=error.strerror)
                failing = True
                gevent.sleep(PAUSE)
                continue
            failing = False
            gevent.spawn(serve, connection)

    def _watch_supervisor(self) -> None:
        while (heard := hear_supervisor(self._lifeline)) is not None:
            match heard[0]:
                case Ping():
                    send(self._lifeline, Pong())
                case Report():
                    log.info("status", **self._verbs["status"]()[0])
        log.error("supervisor.gone")
        os._exit(1)

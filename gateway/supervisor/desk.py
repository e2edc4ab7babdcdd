"""How the console asks the other processes, though it may not open their sockets: the supervisor sends its question,
and hands it the connection on which the answer will come. So this module decides what the console may ask."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import msgspec

from gateway.observe.admin import Rows, question
from gateway.process.lifeline import Answering, Ask
from gateway.supervisor.child import Child
from gateway.supervisor.run_dir import RunDir

VERBS = frozenset(("calls", "events", "flows", "kick", "ladder", "metrics", "peers", "pinholes", "status"))


class Desk:
    """Sends questions of the console. `own`: what the supervisor answers itself, by verb."""

    def __init__(self, run_dir: RunDir, own: Mapping[str, Callable[[], Rows]]) -> None:
        self._run_dir = run_dir
        self._own = own

    def serve(self, child: Child, ask: Ask) -> None:
        """Send a child's question, without waiting."""
        try:
            if child.name != "console":
                raise OSError(0, "only the console asks")
            if ask.verb not in VERBS:
                raise OSError(0, f"{ask.verb} is not for the console")
            connection = self._answer(ask) if ask.process == "supervisor" else self._put(ask)
        except OSError as error:
            child.tell(Answering(ask.number, error.strerror or str(error)))
            return
        with connection:
            child.tell(Answering(ask.number), [connection.fileno()])

    def _put(self, ask: Ask) -> socket.socket:
        """Return the connection to a process, with the question sent. Raises OSError, also if the process has not
        answered many questions before."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(str(self._run_dir.socket_of(ask.process)))
            connection.sendall(question(ask.verb, ask.id))
        except OSError:
            connection.close()
            raise
        return connection

    def _answer(self, ask: Ask) -> socket.socket:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            rows = self._own[ask.verb]() if ask.verb in self._own else []
            ours.sendall(msgspec.json.encode(rows))
        return theirs

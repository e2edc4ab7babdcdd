"""The protocol of the admin sockets: the command line sends one line of JSON over a unix socket, and the process
answers with one JSON array.

This module does not use gevent: broker and supervisor serve it from their own loops, a worker from a greenlet.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Rows = list[dict[str, Any]]
ANSWER_DEADLINE = 2.0  # seconds that a peer may take; only root and the gateway's own user can connect
LONGEST_QUESTION = 4096


class Question(msgspec.Struct, frozen=True):
    """A question. `verb` is "status", "flows", "pinholes", ...; `id` names one of them, for verbs that need it."""

    verb: str
    id: str = ""


def answer(
    connection: socket.socket,
    verbs: Mapping[str, Callable[[], Rows]],
    by_id: Mapping[str, Callable[[str], Rows]] | None = None,
) -> None:
    """Read one question, answer it (with no rows if the verb is unknown), and close the connection. Errors of the
    connection are ignored.

    `by_id`: the verbs that need the id of what they are about.
    """
    with connection:
        connection.settimeout(ANSWER_DEADLINE)
        try:
            line = b""
            while not line.endswith(b"\n") and len(line) < LONGEST_QUESTION:
                chunk = connection.recv(LONGEST_QUESTION)
                if not chunk:
                    break
                line += chunk
            question = msgspec.json.decode(line, type=Question)
            if by_id is not None and question.verb in by_id:
                rows = by_id[question.verb](question.id)
            else:
                rows = verbs[question.verb]() if question.verb in verbs else []
            connection.sendall(msgspec.json.encode(rows))
        except (OSError, msgspec.DecodeError):
            pass


def ask(path: str, verb: str, timeout: float, id: str = "") -> Rows:
    """Ask the process that serves `path`, and return its rows. Raises OSError if it does not answer within `timeout`
    seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(question(verb, id))
        return read_rows(connection)


def question(verb: str, id: str = "") -> bytes:
    """Encode a question."""
    return msgspec.json.encode(Question(verb, id)) + b"\n"


def read_rows(connection: socket.socket) -> Rows:
    """Read the answer to a question that was sent. Raises OSError if there is none."""
    parts = []
    while chunk := connection.recv(65536):
        parts.append(chunk)
    try:
        return msgspec.json.decode(b"".join(parts), type=Rows)
    except msgspec.DecodeError as error:
        raise ConnectionError("no answer") from error

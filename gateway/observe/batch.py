"""Writes log lines in batches: one system call for all lines of one turn of an event loop."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from typing import Any

from gateway.observe.sinks import Sink

Later = Callable[[Callable[[], None]], object]
_PATIENT = ("debug", "info")


class BatchSink:
    """A sink that passes lines on in pieces of at most PIPE_BUF bytes, so that lines of several processes do not mix in
    a pipe.

    `later` is a function of the event loop that calls another function soon. A warning or worse is written at once,
    together with the lines before it.
    """

    def __init__(self, sink: Sink, later: Later) -> None:
        self._sink = sink
        self._later = later
        self._waiting: list[str] = []

    def write(self, line: str, level: str, fields: Mapping[str, Any]) -> None:
        self._waiting.append(line)
        if level not in _PATIENT:
            self.flush()
        elif len(self._waiting) == 1:
            self._later(self.flush)

    def flush(self) -> None:
        """Write the lines that wait."""
        lines, self._waiting = self._waiting, []
        piece: list[str] = []
        size = 0
        for line in lines:
            length = len(line) + 1 if line.isascii() else len(line.encode(errors="backslashreplace")) + 1
            size += length
            if size > select.PIPE_BUF and piece:
                self._sink.write("\n".join(piece), "info", {})
                piece, size = [], length
            piece.append(line)
        if piece:
            self._sink.write("\n".join(piece), "info", {})

"""The messages of `algate exec` on standard error, and the threads that it starts."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Callable


class Messages:
    """Prints the lines of one run. `trace`: a line is printed for each connection too. If standard error is closed,
    lines are lost without an error."""

    def __init__(self, trace: bool = False) -> None:
        self._trace = trace
        self._said: set[str] = set()

    def trace(self, text: str) -> None:
        """Say what happens to a connection, where that is wanted."""
        if self._trace:
            say(text)

    def once(self, text: str) -> None:
        """Say this the first time only."""
        if text not in self._said:
            self._said.add(text)
            say(text)


def say(text: str) -> None:
    """Write a line."""
    with contextlib.suppress(OSError, ValueError):
        print(f"algate exec: {text}", file=sys.stderr, flush=True)


def thread(function: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a thread that is never joined. Raises OSError (EAGAIN) where this system allows no more threads."""
    started = threading.Thread(target=function, args=arguments, daemon=True)
    try:
        started.start()
    except RuntimeError as error:
        raise BlockingIOError(errno.EAGAIN, str(error)) from None
    return started

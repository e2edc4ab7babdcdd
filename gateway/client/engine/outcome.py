"""How a program that `algate exec` runs has ended, or why it was not started. Both engines use these values."""

from __future__ import annotations

import socket
from typing import Protocol

from gateway.client.blocking import Address

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as shells have them


class NoEngine(Exception):
    """An engine does not work on this system; the message says why."""


class Started(Protocol):
    """A program that an engine has started, and that waits for `begin`."""

    def begin(self) -> None:
        """Let the program run."""
        ...

    def inward(self, source: Address, target: Address, /) -> socket.socket:
        """Return a connection to one of the program's ports, from `source` where the engine can do that. OSError."""
        ...

    def wait(self) -> int:
        """Wait for the program to end. Returns its exit code, or 128 and the number of the signal that ended it."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        ...

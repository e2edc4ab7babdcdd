"""How a program ends that `algate exec` runs, or why it does not begin. Both engines say it by these."""

from __future__ import annotations

import socket
from typing import Protocol

from gateway.client.blocking import Address

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as shells have them


class NoEngine(Exception):
    """This system does not let an engine work; the message says why."""


class Started(Protocol):
    """A program that an engine has started, and that waits for `begin`."""

    def begin(self) -> None:
        """Let the program run."""
        ...

    def inward(self, source: Address, target: Address, /) -> socket.socket:
        """Return a connection to one of the program's ports, from `source` where the engine can do that. OSError."""
        ...

    def wait(self) -> int:
        """Wait for the program: its exit code; of one that a signal has ended, 128 and the signal."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        ...

"""Finds out what listens at a port of a client, before a module has that port opened to the world."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import gevent.socket as gsocket

from alg.address import Endpoint
from alg.api import Probe

LONGEST = 5.0
"""Seconds for connection and answer together."""

MOST_PROBES = 64
"""How many ports of clients a driver looks at, at a time."""

MOST_BYTES = 512
"""The greatest number of bytes that may be sent, and that may be expected."""


class Probes:
    """The ports that a driver looks at. `prove`: whether a port answers as a module expects it; it may wait. None:
    nothing is asked, and all do. `answer(ref, outcome)` is called with the port's endpoint, or with "probe"."""

    def __init__(self, prove: Callable[[Probe], bool] | None, answer: Callable[[int, Endpoint | str], None]) -> None:
        self._prove = prove
        self._answer = answer
        self._running = 0

    def begin(self, command: Probe, permitted: bool) -> None:
        """Look at a port, if that is permitted and not too many are looked at; it is answered later then."""
        if not permitted or self._running >= MOST_PROBES:
            gevent.get_hub().loop.run_callback(self._answer, command.ref, "probe")
        elif self._prove is None:
            self._answer(command.ref, command.target)
        else:
            self._running += 1
            gevent.spawn(self._look, command, self._prove)

    def _look(self, command: Probe, prove: Callable[[Probe], bool]) -> None:
        proven = False
        try:
            proven = prove(command)
        finally:
            self._running -= 1
            self._answer(command.ref, command.target if proven else "probe")


def is_proven(command: Probe) -> bool:
    """Whether the port gives the answer that the module expects. Waits for at most `LONGEST` seconds."""
    if max(len(command.send), len(command.expect)) > MOST_BYTES:
        return False
    target = command.target
    family = gsocket.AF_INET6 if target.version == 6 else gsocket.AF_INET
    found = b""
    with gsocket.socket(family, gsocket.SOCK_STREAM) as sock:
        try:
            with gevent.Timeout(LONGEST):
                sock.connect((target.host, target.port))
                if not command.expect:
                    return True
                sock.sendall(command.send)
                while len(found) < len(command.expect) and _is_beginning(found, command):
                    data = sock.recv(len(command.expect) - len(found))
                    if not data:
                        break
                    found += data
        except (OSError, gevent.Timeout):
            return False
    return bool(command.expect) and len(found) == len(command.expect) and _is_beginning(found, command)


def _is_beginning(found: bytes, command: Probe) -> bool:
    """Whether these bytes are how the expected answer begins."""
    start, end = command.unchecked
    expect = command.expect[: len(found)]
    return found[:start] + found[end:] == expect[:start] + expect[end:]

"""Finds out what listens at a port of a client, before a module has that port opened to the world."""

from __future__ import annotations

import gevent
import gevent.socket as gsocket

from alg.api import Probe

LONGEST = 5.0
"""Seconds for connection and answer together."""

MOST_BYTES = 512
"""The greatest number of bytes that may be sent, and that may be expected."""


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

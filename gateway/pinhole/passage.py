"""The passage of a pinhole's peer: from the moment in which the kernel has taken its connection until it is joined to
the target, or that has failed.

The peer believes itself connected from that first moment on, and says so (FTP's 150) by a connection of its own. Where
the target reads that before it has been connected to, some programs give up.
"""

from __future__ import annotations

import select
import time
from typing import Protocol

from gevent.event import Event as Wakeup
from gevent.monkey import get_original

PATIENCE = 2.0  # seconds for which one passage holds back others, all told; a target that is there answers sooner


class Door(Protocol):
    """The listening socket through which the peer comes in. A negative `fileno`: it is closed."""

    def fileno(self) -> int: ...


class Passage:
    """One passage. Without a `door` it has begun already."""

    __slots__ = ("_changed", "_door", "_ended", "_left")

    def __init__(self, door: Door | None = None) -> None:
        self._door = door
        self._ended = False
        self._left = PATIENCE
        self._changed = Wakeup()

    @property
    def over(self) -> bool:
        """Whether nothing is held back for it any more."""
        return self._ended or self._left <= 0

    def begin(self) -> None:
        """The peer was let in, and is being joined to the target."""
        self._door = None

    def end(self) -> None:
        """The peer is joined to the target, or that has failed, or none comes any more."""
        self._ended = True
        self._changed.set()

    def turned_away(self) -> None:
        """Note that the host that had connected was not the peer."""
        self._changed.set()

    def wait(self) -> None:
        """Return when no peer is between the kernel and the target: at once, if none has come."""
        while self._left > 0 and self._is_under_way():
            before = time.monotonic()
            self._changed.clear()
            self._changed.wait(self._left)
            self._left -= time.monotonic() - before

    def _is_under_way(self) -> bool:
        if self._ended or self._door is None:
            return not self._ended
        if (fd := self._door.fileno()) < 0:
            return False
        poll: select.poll = get_original("select", "poll")()  # gevent's own would let others run
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

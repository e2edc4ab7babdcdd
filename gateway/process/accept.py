"""Accepting connections for as long as there are descriptors for them, with some kept in reserve."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable

import gevent
import gevent.socket as gsocket
import structlog

log = structlog.get_logger()

RESERVE = 64  # descriptors that no client gets: pipes of the relay, name servers, the command line, log, pinholes
DESCRIPTORS = 4  # that a connection may come to need: itself, its server, a pipe
PAUSE = 0.05  # seconds until there may be room again; meanwhile clients wait in the listener's backlog
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Handler = Callable[[gsocket.socket, tuple[object, ...]], None]


class Acceptor:
    """Accepts for the listeners of one process.

    Nothing is counted that could be counted wrongly: how many descriptors are in use the kernel says; how many
    connections still have a greenlet, the set of these greenlets. Each of them is going to need one more descriptor for
    its server. The limit is RLIMIT_NOFILE as it is at that moment.
    """

    def __init__(self) -> None:
        self._handling: set[gevent.Greenlet[..., None]] = set()
        self._full_since: float | None = None
        self._unasked = 0  # connections that may come before the kernel is asked again

    @property
    def handling(self) -> int:
        """Connections that a greenlet still serves: in their handshake, being connected, or read by a module."""
        return len(self._handling)

    def serve(self, listener: gsocket.socket, handler: Handler) -> None:
        """Accept until the listener is shut down; a greenlet each. What it accepts `handler` owns."""
        while True:
            if not self.has_room():
                self._pause()
                continue
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:  # the supervisor has shut the listener down: we drain
                    return
                if error.errno in _EXHAUSTED:
                    self._pause()
                continue
            self._recovered()
            greenlet = gevent.spawn(handler, sock, address)
            self._handling.add(greenlet)
            greenlet.link(self._handling.discard)  # however it ends, begun or not

    def has_room(self) -> bool:
        """Whether one more connection may come, with the one to its server."""
        if self._unasked > 0:
            self._unasked -= 1
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - min(RESERVE, limit // 4) - _open_descriptors() - len(self._handling)
        self._unasked = left // DESCRIPTORS
        return left >= DESCRIPTORS

    def _pause(self) -> None:
        if self._full_since is None:
            self._full_since = time.monotonic()
            log.error("accept.exhausted", handling=self.handling)
        gevent.sleep(PAUSE)

    def _recovered(self) -> None:
        if self._full_since is not None:
            log.warning("accept.recovered", after=round(time.monotonic() - self._full_since, 3))
            self._full_since = None


def _open_descriptors() -> int:
    """How many descriptors this process has open."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # the size is Linux 6.2 and later

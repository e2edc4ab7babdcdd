"""Accepts the connections of the command line where a loop without gevent does it, also when no descriptor is left."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from gateway.observe.log import get_logger

log = get_logger()

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""What accept(2) says where this process, or this host, has no descriptor left. The connection waits on."""


class Doorkeeper:
    """Accepts connections for a loop that is woken as long as one waits. It keeps a descriptor for the moment when no
    other is left: by that the connection is taken after all, and closed, as it would wake the loop without end."""

    def __init__(self) -> None:
        self._spare: int | None = None
        self._keep()

    def _keep(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self, listener: socket.socket) -> socket.socket | None:
        """Return the next connection; None: there is none, or it could not be served."""
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno in EXHAUSTED:
                log.warning("accept.failed", reason=error.strerror)
                self._close_unserved(listener)
            return None

    def _close_unserved(self, listener: socket.socket) -> None:
        if self._spare is None:
            self._keep()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):
                listener.accept()[0].close()
            self._keep()

    def close(self) -> None:
        """Give back what was kept."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

"""Tells of connections that are reset while nobody reads from them.

A side that has closed its direction is at its end of stream for good: watching it for reading would spin, and libev
cannot watch for less. One that may not send for the moment is not to be read either. The kernel's epoll can do it: with
no event asked for it still reports errors.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import get_hub
from gevent.monkey import get_original

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

READ = 1  # libev's EV_READ


class Hangups:
    """Calls back, once and in the hub, when a watched TCP connection was reset or gave up."""

    def __init__(self) -> None:
        self._epoll = get_original("select", "epoll")()  # the monkey patch takes it away
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._watcher: _IoWatcher = get_hub().loop.io(self._epoll.fileno(), READ, ref=False)
        self._watcher.start(self._tell)

    def __len__(self) -> int:
        return len(self._callbacks)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` when `fd` breaks, in place of a callback that was given before."""
        if fd not in self._callbacks:
            self._epoll.register(fd, 0)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch `fd` no more; to be done before it is closed. One that is not watched is no error."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()

    def _tell(self) -> None:
        for fd, events in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is None:  # a callback before it ended this one
                continue
            self.forget(fd)
            # Without an error it is the hang-up of a connection that both sides closed in order: no news.
            if events & select.EPOLLERR:
                callback()

"""Polls thousands of sockets for the cost of one libev watcher: an epoll of our own inside libev's.

A watcher of libev is made, started, stopped and closed for each wait, with a system call or two each time. Here a
socket is registered once for its life, and its handler may be replaced. The events that it waits for change only when
they must, and closing it needs no call. With no event asked for, epoll still reports errors, which libev cannot do.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from gevent import get_hub
from gevent.monkey import get_original

from gateway.net.libev import EV_READ

if TYPE_CHECKING:
    from gevent._types import _IoWatcher, _Loop, _TimerWatcher

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
ENDED = select.EPOLLRDHUP  # with READ: the other end sends no more than what is there
BROKEN = select.EPOLLERR
GONE = select.EPOLLERR | select.EPOLLHUP  # reported whatever is asked for

BATCH = 128  # sockets that are served before libev and the greenlets get their turn,
TURN = 0.002  # or as many as take so many seconds: each may have a megabyte to move
LOOK = 8  # sockets between two looks at the clock

Handler = Callable[[int], None]


class Watch:
    """One socket in a poller. `handler` is called in the hub with the events, as long as they last; it may be replaced
    at any time."""

    __slots__ = ("_asked", "_poller", "fd", "handler")

    def __init__(self, poller: Poller, fd: int, asked: int, handler: Handler) -> None:
        self._poller = poller
        self._asked: int | None = asked
        self.fd = fd
        self.handler = handler

    def ask(self, events: int) -> None:
        """Wait for READ, WRITE, or both; with 0 only for a break."""
        if events != self._asked:
            if self._asked is None:
                if not events:  # it has been told of the break
                    return
                self._poller.epoll.register(self.fd, events)
            else:
                self._poller.epoll.modify(self.fd, events)
            self._asked = events

    def rest(self) -> None:
        """Report no events, not even a break, until `ask` is called again."""
        if self._asked is not None:
            self._poller.epoll.unregister(self.fd)
            self._asked = None

    def forget(self, closing: bool) -> None:
        """Remove the socket from the poller. `closing`: the socket is closed next, so the kernel removes it by
        itself."""
        if self._poller.watches.pop(self.fd, None) is not None and not closing:
            self.rest()
        self.handler = _deaf  # whose handler it was may have it as an attribute: a cycle


class Poller:
    """The poller of a process, made in its hub's thread. `watches` by descriptor."""

    def __init__(self) -> None:
        self.epoll: select.epoll = get_original("select", "epoll")()  # the monkey patch takes it away
        self.watches: dict[int, Watch] = {}
        self._ready: deque[tuple[int, Watch | None, int]] = deque()  # that were told of, and not served yet
        self._loop: _Loop = get_hub().loop
        self._watcher: _IoWatcher = self._loop.io(self.epoll.fileno(), EV_READ)
        self._watcher.start(self._tell)
        self._again: _TimerWatcher = self._loop.timer(0.0)

    def __len__(self) -> int:
        return len(self.watches)

    def watch(self, fd: int, events: int, handler: Handler) -> Watch:
        """Watch a socket until it is forgotten."""
        self.epoll.register(fd, events)
        watch = self.watches[fd] = Watch(self, fd, events, handler)
        return watch

    def reading(self, fd: int, handler: Handler, watch: Watch | None) -> Watch:
        """Call `handler` when the socket can be read. `watch` is the socket's watch, if it has one already."""
        if watch is None:
            return self.watch(fd, READ, handler)
        watch.handler = handler
        watch.ask(READ)
        return watch

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._again.stop()
        self._again.close()
        self._ready.clear()
        self.epoll.close()

    def _tell(self) -> None:
        watches, ready = self.watches, self._ready
        if not ready:
            # Looked up before the first is served: a descriptor may be closed meanwhile, and opened again for another.
            ready.extend([(fd, watches.get(fd), events) for fd, events in self.epoll.poll(0, BATCH)])
        began, served = perf_counter(), 0
        while ready:
            fd, watch, events = ready.popleft()
            if watch is not None and watches.get(fd) is watch:
                try:
                    watch.handler(events)
                except Exception as error:
                    self._loop.handle_error(watch.handler, type(error), error, error.__traceback__)
            served += 1
            if not served % LOOK and perf_counter() - began > TURN:
                break
        if ready:  # the others in the next round of the loop, before those that become ready meanwhile
            self._again.start(self._tell)


Watches = tuple[Watch | None, Watch | None]
"""The watches of a flow's two sockets; None for one that is not watched yet."""

UNWATCHED: Watches = (None, None)


def _deaf(_events: int) -> None:
    """The handler of a socket that is no longer watched."""

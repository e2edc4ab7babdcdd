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

BATCH = 128  # sockets that are asked for at once, beside those that are known to have much to do
SLICE = 0.001  # seconds for which sockets are served before libev and the greenlets get their turn,
BULK_SLICE = 0.001  # and after those, as many for the ones that have much to do
LOOK = 8  # sockets between two looks at the clock

Handler = Callable[[int], None]


class Watch:
    """One socket in a poller. `handler` is called in the hub with the events, as long as they last; it may be replaced
    at any time. `bulk`: each call has much to do, so that others are called before it; may be changed at any time.
    `pending`: the events of which the handler is still to be told, while the socket waits for that."""

    __slots__ = ("_asked", "_poller", "bulk", "fd", "handler", "pending")

    def __init__(self, poller: Poller, fd: int, asked: int, handler: Handler) -> None:
        self._poller = poller
        self._asked: int | None = asked
        self.fd = fd
        self.handler = handler
        self.bulk = False
        self.pending = 0

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
    """The poller of a process, made in its hub's thread. `watches` by descriptor.

    Sockets that are ready stand in one of two lines. In every round of the event loop the first is served, and what has
    become ready meanwhile is found; those of the second, with much to do, are served for `BULK_SLICE` after that, so
    however many they are, a new connection, an answer or a few bytes wait for no more than that.
    """

    def __init__(self) -> None:
        self.epoll: select.epoll = get_original("select", "epoll")()  # the monkey patch takes it away
        self.watches: dict[int, Watch] = {}
        self._line: deque[Watch] = deque()  # that are ready, and not served yet
        self._bulk: deque[Watch] = deque()  # the same, with much to do
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
        self._line.clear()
        self._bulk.clear()
        self.epoll.close()

    def _tell(self) -> None:
        line, bulk = self._line, self._bulk
        if not line:
            # Looked up before the first is served: a descriptor may be closed meanwhile, and opened again for another.
            for fd, events in self.epoll.poll(0, BATCH + len(bulk)):
                watch = self.watches.get(fd)
                if watch is not None:
                    if not watch.pending:
                        (bulk if watch.bulk else line).append(watch)
                    watch.pending = events
        self._serve(line, SLICE, LOOK)
        self._serve(bulk, BULK_SLICE, 1)
        if line or bulk:  # the others in the next round of the loop
            self._again.start(self._tell)

    def _serve(self, line: deque[Watch], seconds: float, look: int) -> None:
        """Call handlers of a line for so long, with a look at the clock after every `look` of them."""
        if not line:
            return
        watches = self.watches
        until = perf_counter() + seconds
        for served in range(1, len(line) + 1):
            watch = line.popleft()
            events, watch.pending = watch.pending, 0
            if watches.get(watch.fd) is watch:
                try:
                    watch.handler(events)
                except Exception as error:
                    self._loop.handle_error(watch.handler, type(error), error, error.__traceback__)
            if not served % look and perf_counter() > until:
                return


Watches = tuple[Watch | None, Watch | None]
"""The watches of a flow's two sockets; None for one that is not watched yet."""

UNWATCHED: Watches = (None, None)


def _deaf(_events: int) -> None:
    """The handler of a socket that is no longer watched."""

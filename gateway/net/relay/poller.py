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

from gateway.net.fair_line import FairLine
from gateway.net.libev import EV_READ
from gateway.net.slices import PIECE, slices

if TYPE_CHECKING:
    from gevent._types import _IoWatcher, _Loop

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
ENDED = select.EPOLLRDHUP  # with READ: the other end sends no more than what is there
BROKEN = select.EPOLLERR
GONE = select.EPOLLERR | select.EPOLLHUP  # reported whatever is asked for

BATCH = 512  # sockets that are asked for at once, beside those that are known to be ready
FEW = 64  # sockets that are ready, up to which they are served as they come, whosever they are
SLICE = 0.0005  # seconds for which sockets are served, twice, before libev and the greenlets get their turn,
BULK_SLICE = 0.001  # and after those, as many for the ones that have much to do
LOOK = 8  # sockets between two looks at the clock
COMPANY = 0.02  # seconds for which sockets with little to do are expected to be ready again
FIRST = 2  # the priority of libev's watcher: what is ready here comes before all that libev finds with it

Handler = Callable[[int], None]


class Watch:
    """One socket in a poller. `handler` is called in the hub with the events, as long as they last; it may be replaced
    at any time. `owner`: the client for whom it is, so that each has a turn where many sockets are ready. `bulk`: each
    call has much to do, so that others are called before it; may be changed at any time. `heavy`: it had much to do at
    some time. `pending`: the events of which the handler is still to be told, while the socket waits for that."""

    __slots__ = ("_asked", "_poller", "bulk", "fd", "handler", "heavy", "owner", "pending")

    def __init__(self, poller: Poller, fd: int, asked: int, handler: Handler, owner: object) -> None:
        self._poller = poller
        self._asked: int | None = asked
        self.fd = fd
        self.handler = handler
        self.owner = owner
        self.bulk = self.heavy = False
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

    Sockets that are ready stand in one of two lines: those with little to do (listeners, handshakes, answers, a few
    bytes), and those with much. Of the second, and of greenlets that have much to do, one piece is done at a time
    (`slices`), and between two pieces the poller looks what has become ready and serves the first line. So a socket
    with little to do waits for one piece, not for a round of the event loop. Where more than `FEW` are ready each
    client has one socket served in turn, however many it has.
    """

    def __init__(self) -> None:
        self.epoll: select.epoll = get_original("select", "epoll")()  # the monkey patch takes it away
        self.watches: dict[int, Watch] = {}
        self._line: deque[Watch] = deque()  # that are ready, and not served yet; or,
        self._crowd = FairLine()  # where they are many and of several clients, each client's
        self.more = False  # whether a handler has stopped early, and asks for another turn soon
        self._owner: object = None  # the client of the first in the line, listeners aside,
        self._mixed = False  # and whether others have some there too
        self._bulk = FairLine()  # the same, with much to do
        self._served = 0.0  # when something that never had much to do was found last
        self._looked = 0.0  # when was looked last,
        self._rest = PIECE  # and for how long that is enough
        self._loop: _Loop = get_hub().loop
        self._watcher: _IoWatcher = self._loop.io(self.epoll.fileno(), EV_READ, priority=FIRST)
        self._watcher.start(self._tell)
        slices().between.append(self.look)

    def __len__(self) -> int:
        return len(self.watches)

    def watch(self, fd: int, events: int, handler: Handler, owner: object = None) -> Watch:
        """Watch a socket until it is forgotten."""
        self.epoll.register(fd, events)
        watch = self.watches[fd] = Watch(self, fd, events, handler, owner)
        return watch

    def reading(self, fd: int, handler: Handler, watch: Watch | None) -> Watch:
        """Call `handler` when the socket can be read. `watch` is the socket's watch, if it has one already."""
        if watch is None:
            return self.watch(fd, READ, handler)
        watch.handler = handler
        watch.ask(READ)
        return watch

    def is_busy(self) -> bool:
        """Whether other sockets, or greenlets, wait to be served."""
        return bool(self._line) or len(self._crowd) > 0 or len(self._bulk) > 0 or len(slices()) > 0

    def has_company(self, now: float) -> bool:
        """Whether sockets that never had much to do have been served lately (`now`: of `perf_counter`). Then what has
        much to do had better take smaller pieces."""
        return now < self._served + COMPANY

    def look(self) -> None:
        """Serve what has little to do, for a piece at most. To be called in the hub, between two pieces of work."""
        if perf_counter() < self._looked + self._rest:
            return
        self._find()
        if self._line or len(self._crowd):
            self._serve(PIECE)

    def close(self) -> None:
        between = slices().between
        if self.look in between:
            between.remove(self.look)
        self._watcher.stop()
        self._watcher.close()
        self._line.clear()
        self._crowd.clear()
        self._bulk.clear()
        self.epoll.close()

    def _tell(self) -> None:
        """There are sockets that are ready. What is not served now makes the next round of the loop begin at once, as
        epoll tells what lasts again."""
        until = perf_counter() + 2 * SLICE
        if not 0 < len(self._line) <= FEW:  # a few are served in a moment, and would be found again
            self._find()
        if not len(self._crowd):
            # A listener stops early. For the rest of its connections there is no other round of the loop, which costs
            # as much as one of them.
            while not self._serve(2 * SLICE) and self.more and perf_counter() < until:
                self.more = False
                self._find()
        elif self._serve(SLICE):
            self._find()
            self._serve(SLICE)
        bulk = self._bulk
        if not len(bulk):
            return
        until = perf_counter() + BULK_SLICE
        while True:
            self._call(bulk.popleft())
            if not len(bulk) or perf_counter() > until:
                return
            self.look()

    def _find(self) -> None:
        """Let what is ready stand in line. It is looked up before the first is served: a descriptor may be closed
        meanwhile, and opened again for another."""
        line, crowd, bulk, watches = self._line, self._crowd, self._bulk, self.watches
        began = perf_counter()
        crowded, company = len(crowd) > 0, False
        if not line:
            self._owner, self._mixed = None, False
        for fd, events in self.epoll.poll(0, BATCH + len(line) + len(crowd) + len(bulk)):
            watch = watches.get(fd)
            if watch is not None:
                if not watch.pending:
                    if not watch.heavy:
                        company = True
                    if watch.bulk:
                        bulk.append(watch.owner, watch)
                    elif crowded:
                        crowd.append(watch.owner, watch)
                    else:
                        line.append(watch)
                        if watch.owner is not None and watch.owner is not self._owner:
                            if self._owner is None:
                                self._owner = watch.owner
                            else:
                                self._mixed = True
                watch.pending = events
        if self._mixed and len(line) > FEW:
            while line:
                watch = line.popleft()
                crowd.append(watch.owner, watch)
        self._looked = now = perf_counter()
        if company:
            self._served = now
        self._rest = max(PIECE / 2, 2 * (now - began))  # a third of the time at most, however many are ready

    def _serve(self, seconds: float) -> bool:
        """Call handlers of sockets with little to do, for so long. Returns whether there are more."""
        line, crowd = self._line, self._crowd
        until = perf_counter() + seconds
        left = LOOK
        while True:
            if line:
                self._call(line.popleft())
            elif len(crowd):
                self._call(crowd.popleft())
            else:
                return False
            left -= 1
            if not left:
                if perf_counter() > until:
                    return True
                left = LOOK

    def _call(self, watch: Watch) -> None:
        events, watch.pending = watch.pending, 0
        if self.watches.get(watch.fd) is watch:
            try:
                watch.handler(events)
            except Exception as error:
                self._loop.handle_error(watch.handler, type(error), error, error.__traceback__)


Watches = tuple[Watch | None, Watch | None]
"""The watches of a flow's two sockets; None for one that is not watched yet."""

UNWATCHED: Watches = (None, None)


def _deaf(_events: int) -> None:
    """The handler of a socket that is no longer watched."""

"""Accepts connections as long as there are descriptors for them, with some kept in reserve."""

from __future__ import annotations

import _socket
import errno
import resource
import time
from collections.abc import Callable
from functools import partial
from socket import SOCK_STREAM
from typing import TYPE_CHECKING

import gevent
import gevent.socket as gsocket
import structlog
from gevent import get_hub

from gateway.net.libev import EV_READ
from gateway.net.sockets import prepare
from gateway.observe.metrics import open_descriptors
from gateway.policy.clients import ClientLimit, Clients, ClientUse, HoldingKind

if TYPE_CHECKING:
    from gevent._types import _IoWatcher, _TimerWatcher

log = structlog.get_logger()

RESERVE = 64  # descriptors that no client gets: pipes of the relay, name servers, the command line, log, pinholes
DESCRIPTORS = 4  # that a connection may come to need: itself, its server, a pipe
PAUSE = 0.05  # seconds until there may be room again; meanwhile clients wait in the listener's backlog
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

BATCH = 32  # connections accepted in one callback, so that the flows that are there get their turn

Quick = Callable[[_socket.socket, tuple[object, ...]], None]
Handler = Callable[[gsocket.socket, tuple[object, ...]], None]


class Acceptor:
    """Accepts connections for the listeners of one process.

    Nothing is counted that could be counted wrongly: the kernel says how many descriptors are in use, and the
    connections that still have a greenlet are the set of these greenlets. Each of them is going to need one more
    descriptor, for its server. The limit is RLIMIT_NOFILE at that moment.
    """

    def __init__(self, clients: Clients | None = None) -> None:
        """`clients`: limits what each client may have; without it there is no bound."""
        self._clients = clients
        self._opening = 0  # connections without a greenlet that are going to need a descriptor for their server
        self._handling: set[gevent.Greenlet[..., None]] = set()
        self._full_since: float | None = None
        self._unasked = 0  # connections that may come before the kernel is asked again

    @property
    def handling(self) -> int:
        """The number of connections that the relay does not carry yet: in their handshake, being connected, or read by
        a module."""
        return len(self._handling) + self._opening

    def serve(self, listener: gsocket.socket, handler: Handler) -> None:
        """Accept until the listener is shut down, with a greenlet for each connection. `handler` owns the accepted
        socket."""
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

    def listen(self, fd: int, handler: Quick) -> Callable[[], None]:
        """Accept on a listening TCP socket, many connections in one wake-up, until it is shut down or the returned
        function is called.

        `handler` is called in the hub for each connection, with a socket that does not block; it owns the socket, and
        must neither block nor raise.
        """
        listener = _socket.socket(fileno=fd)
        listener.setblocking(False)
        prepare(listener)  # the connections inherit it: six system calls less for each
        watcher = get_hub().loop.io(fd, EV_READ)
        watcher.start(self._ready, listener, watcher, handler)
        return watcher.stop

    def spawn(self, handler: Callable[[], None], client: str) -> None:
        """Continue a client's connection in a greenlet, which counts as `handling`."""
        greenlet = gevent.spawn(handler)
        self._handling.add(greenlet)
        if self._clients is None:
            greenlet.link(self._handling.discard)
            return
        holder = self._clients.holder(client)
        self._clients.take(HoldingKind.HANDSHAKES, holder)
        greenlet.link(partial(self._handled, holder))

    def _handled(self, holder: ClientUse, greenlet: gevent.Greenlet[..., None]) -> None:
        self._handling.discard(greenlet)
        if self._clients is not None:
            self._clients.give_back(HoldingKind.HANDSHAKES, holder)

    def begin(self, client: str) -> ClientUse | None:
        """Count a connection of this client that is on its way to the relay, without a greenlet. Call `end` with the
        result.

        It counts as a flow from now on, so that connections that a client begins at several workers at once are bounded
        too.
        """
        self._opening += 1
        if self._clients is None:
            return None
        holder = self._clients.holder(client)
        self._clients.take(HoldingKind.HANDSHAKES, holder)
        self._clients.take(HoldingKind.FLOWS, holder)
        return holder

    def end(self, holder: ClientUse | None) -> None:
        """The connection has reached the relay (its flow is in the table already), has ended, or was handed over."""
        self._opening -= 1
        if holder is not None and self._clients is not None:
            self._clients.give_back(HoldingKind.HANDSHAKES, holder)
            self._clients.give_back(HoldingKind.FLOWS, holder)

    def _admits(self, client: str) -> bool:
        """Whether the client may have one more connection."""
        if self._clients is None:
            return True
        try:
            self._clients.check(HoldingKind.FLOWS, client)
            self._clients.check(HoldingKind.HANDSHAKES, client)
        except ClientLimit as limit:
            log.warning("client.limit", client=client, kind=limit.kind.label, bound=limit.bound, most=limit.most)
            return False
        return True

    def _ready(self, listener: _socket.socket, watcher: _IoWatcher, handler: Quick) -> None:
        for _ in range(BATCH):
            if not self.has_room():
                self._rest(listener, watcher, handler)
                return
            try:
                fd, address = listener._accept()  # type: ignore[attr-defined]  # accept(2) as it is
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EINVAL:  # the supervisor has shut the listener down
                    watcher.stop()
                    listener.close()
                    return
                if error.errno in _EXHAUSTED:
                    self._rest(listener, watcher, handler)
                    return
                continue  # it had gone before we came to it
            self._recovered()
            sock = _socket.socket(listener.family, SOCK_STREAM, listener.proto, fileno=fd)
            if not self._admits(address[0]):
                sock.close()
                continue
            sock.setblocking(False)
            handler(sock, address)

    def _rest(self, listener: _socket.socket, watcher: _IoWatcher, handler: Quick) -> None:
        self._exhausted()
        watcher.stop()
        timer = get_hub().loop.timer(PAUSE)
        timer.start(self._go_on, timer, listener, watcher, handler)

    def _go_on(self, timer: _TimerWatcher, listener: _socket.socket, watcher: _IoWatcher, handler: Quick) -> None:
        timer.close()
        watcher.start(self._ready, listener, watcher, handler)

    def has_room(self) -> bool:
        """Whether there are descriptors for one more connection and the one to its server."""
        if self._unasked > 0:
            self._unasked -= 1
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - min(RESERVE, limit // 4) - open_descriptors() - len(self._handling) - self._opening
        self._unasked = left // DESCRIPTORS
        return left >= DESCRIPTORS

    def _pause(self) -> None:
        self._exhausted()
        gevent.sleep(PAUSE)

    def _exhausted(self) -> None:
        if self._full_since is None:
            self._full_since = time.monotonic()
            log.error("accept.exhausted", handling=self.handling)

    def _recovered(self) -> None:
        if self._full_since is not None:
            log.warning("accept.recovered", after=round(time.monotonic() - self._full_since, 3))
            self._full_since = None


def room_for_connections() -> int:
    """Return how many connections this process has descriptors for, each with the one to its server."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (limit - min(RESERVE, limit // 4)) // 2

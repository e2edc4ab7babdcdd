"""Accepts connections as long as there are descriptors for them, with some kept in reserve."""

from __future__ import annotations

import _socket
import errno
import resource
import time
from collections.abc import Callable
from functools import partial
from socket import SOCK_STREAM
from time import perf_counter
from typing import TYPE_CHECKING

import gevent
import gevent.socket as gsocket
import structlog
from gevent import get_hub

from gateway.net.relay.poller import READ, Poller, Watch
from gateway.net.slices import PIECE, belongs_to, slices
from gateway.net.sockets import prepare
from gateway.observe.metrics import open_descriptors
from gateway.policy.clients import ClientLimit, Clients, ClientUse, HoldingKind

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher

log = structlog.get_logger()

RESERVE = 64  # descriptors that no client gets: pipes of the relay, name servers, the command line, log, pinholes
DESCRIPTORS = 4  # that a connection may come to need: itself, its server, a pipe
PAUSE = 0.05  # seconds until there may be room again; meanwhile clients wait in the listener's backlog
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

BATCH = 32  # connections accepted in one callback at most, so that the flows that are there get their turn
LONGEST = 0.001  # seconds for that, while nobody else is known to wait
BEGINNING = 0.0002  # seconds of work that a connection is until its greenlet waits for something

Quick = Callable[[_socket.socket, tuple[object, ...]], None]
Handler = Callable[[gsocket.socket, tuple[object, ...]], None]


class Acceptor:
    """Accepts connections for the listeners of one process.

    Nothing is counted that could be counted wrongly: the kernel says how many descriptors are in use, and the
    connections that still have a greenlet are the set of these greenlets. Each of them is going to need one more
    descriptor, for its server. The limit is RLIMIT_NOFILE at that moment.
    """

    def __init__(self, clients: Clients | None = None, poller: Poller | None = None) -> None:
        """`clients`: limits what each client may have; without it there is no bound. `poller`: of the listeners that
        are given to `listen`."""
        self._clients = clients
        self._poller = poller
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
            self.recovered()
            greenlet = gevent.spawn(handler, sock, address)
            self._handling.add(greenlet)
            greenlet.link(self._handling.discard)  # however it ends, begun or not

    def listen(self, fd: int, handler: Quick) -> Callable[[], None]:
        """Accept on a listening TCP socket, many connections in one wake-up, until it is shut down or the returned
        function is called.

        `handler` is called in the hub for each connection, with a socket that does not block; it owns the socket, and
        must neither block nor raise.
        """
        assert self._poller is not None
        listener = _socket.socket(fileno=fd)
        listener.setblocking(False)
        prepare(listener)  # the connections inherit it: six system calls less for each
        return _Listening(self, self._poller, listener, handler).stop

    def spawn(self, handler: Callable[[], None], client: str) -> None:
        """Continue a client's connection in a greenlet, which counts as `handling`."""
        greenlet = gevent.spawn(_begin, handler)
        self._handling.add(greenlet)
        if self._clients is None:
            greenlet.link(self._handling.discard)
            return
        holder = self._clients.holder(client)
        belongs_to(greenlet, holder)
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

    def admits(self, client: str) -> bool:
        """Whether the client may have one more connection; if not, that is logged."""
        if self._clients is None:
            return True
        try:
            self._clients.check(HoldingKind.FLOWS, client)
            self._clients.check(HoldingKind.HANDSHAKES, client)
        except ClientLimit as limit:
            log.warning("client.limit", client=client, kind=limit.kind.label, bound=limit.bound, most=limit.most)
            return False
        return True

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
        self.exhausted()
        gevent.sleep(PAUSE)

    def exhausted(self) -> None:
        """There are no descriptors for another connection."""
        if self._full_since is None:
            self._full_since = time.monotonic()
            log.error("accept.exhausted", handling=self.handling)

    def recovered(self) -> None:
        """There was one."""
        if self._full_since is not None:
            log.warning("accept.recovered", after=round(time.monotonic() - self._full_since, 3))
            self._full_since = None


class _Listening:
    """One listener: it has a turn among the sockets that have little to do."""

    __slots__ = ("_acceptor", "_handler", "_listener", "_over", "_poller", "_watch")

    def __init__(self, acceptor: Acceptor, poller: Poller, listener: _socket.socket, handler: Quick) -> None:
        self._acceptor = acceptor
        self._handler = handler
        self._listener = listener
        self._poller = poller
        self._over = False
        self._watch: Watch = poller.watch(listener.fileno(), READ, self._ready)

    def stop(self) -> None:
        """Accept no more. May be called again."""
        if not self._over:
            self._over = True
            self._watch.forget(closing=False)

    def _ready(self, _events: int) -> None:
        acceptor, listener, handler = self._acceptor, self._listener, self._handler
        family, proto = listener.family, listener.proto
        until = perf_counter() + (PIECE if self._poller.is_busy() else LONGEST)
        for _ in range(BATCH):
            if not acceptor.has_room():
                self._rest()
                return
            try:
                fd, address = listener._accept()  # type: ignore[attr-defined]  # accept(2) as it is
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EINVAL:  # the supervisor has shut the listener down
                    self.stop()
                    listener.close()
                    return
                if error.errno in _EXHAUSTED:
                    self._rest()
                    return
                continue  # it had gone before we came to it
            acceptor.recovered()
            sock = _socket.socket(family, SOCK_STREAM, proto, fileno=fd)
            if acceptor.admits(address[0]):
                sock.setblocking(False)
                handler(sock, address)
            else:
                sock.close()
            if perf_counter() > until:
                break
        self._poller.more = True

    def _rest(self) -> None:
        self._acceptor.exhausted()
        self._watch.rest()
        timer = get_hub().loop.timer(PAUSE)
        timer.start(self._go_on, timer)

    def _go_on(self, timer: _TimerWatcher) -> None:
        timer.close()
        if not self._over:
            self._watch.ask(READ)


def _begin(handler: Callable[[], None]) -> None:
    """Run the handler of a connection. Where many begin at once, they do so one after the other, and others are served
    between them."""
    slices().begin(BEGINNING)
    handler()


def room_for_connections() -> int:
    """Return how many connections this process has descriptors for, each with the one to its server."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (limit - min(RESERVE, limit // 4)) // 2

"""The HTTP server of UPnP: connections of inside clients, within limits of number, time and size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import gevent
import gevent.socket as gsocket

from alg.address import Endpoint
from alg.bucket import Rate
from alg.upnp.errors import HttpError
from alg.upnp.http import CONTINUE, Request, RequestReader
from gateway.front.accept import Acceptor
from gateway.net.sockets import abort, close_gently, endpoint
from gateway.observe.counters import count
from gateway.observe.log import get_logger

log = get_logger()

MOST_CONNECTIONS = 128
MOST_OF_A_HOST = 16
PER_SECOND = 20.0  # requests and connections of a host, on average
BURST = 100.0
REQUEST = 10.0  # seconds from the first byte of a request to its last
IDLE = 30.0  # seconds that a connection may wait for a request
RESPONSE = 10.0  # seconds in which a client has to take its answer
LINGER = 1.0  # seconds until an answer counts as taken

HttpAnswer = Callable[[Request, str, Endpoint], bytes]
Refuse = Callable[[HttpError], bytes]


class HttpServer:
    """Serves connections that come to listening sockets.

    `admits`: whether a peer's socket address is that of an inside client. `answer(request, client, own)` returns the
    answer; `refuse` that to something that is no request. `identify`: which addresses are one host, so that one with
    many of them does not take all places.
    """

    def __init__(
        self,
        admits: Callable[[tuple[object, ...]], bool],
        answer: HttpAnswer,
        refuse: Refuse,
        identify: Callable[[str], str],
    ) -> None:
        self._admits = admits
        self._answer = answer
        self._refuse = refuse
        self._identify = identify
        self._acceptor = Acceptor()
        self._rate = Rate(PER_SECOND, BURST)
        self._of_host: Counter[str] = Counter()
        self.requests = self.refused = 0

    def serve(self, listener: gsocket.socket) -> None:
        """Accept connections until the listener is shut down."""
        self._acceptor.serve(listener, self._on_connection)

    def _on_connection(self, sock: gsocket.socket, address: tuple[object, ...]) -> None:
        client = endpoint(address).host
        host = self._identify(client)
        if not self._admits(address) or not self._takes(host, client):
            self.refused += 1
            abort(sock)
            return
        self._of_host[host] += 1
        try:
            self._serve(sock, client, endpoint(sock.getsockname()))
        except OSError:
            abort(sock)  # it has gone, or is too slow: no news
        finally:
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]

    def _takes(self, host: str, client: str) -> bool:
        if self._of_host[host] >= MOST_OF_A_HOST or self._of_host.total() >= MOST_CONNECTIONS:
            return False
        return self._may_ask(host, client)

    def _may_ask(self, host: str, client: str) -> bool:
        if self._rate.take(host, time.monotonic()):
            return True
        count("algate_portmap_dropped_total")
        log.warning("portmap.rate", client=client, holder="upnp")
        return False

    def _serve(self, sock: gsocket.socket, client: str, own: Endpoint) -> None:
        reader = RequestReader()
        first = True
        while True:
            try:
                request = self._read(sock, reader)
            except HttpError as error:
                sock.settimeout(RESPONSE)
                sock.sendall(self._refuse(error))
                break
            if request is None:
                break
            if not first and not self._may_ask(
                self._identify(client), client
            ):  # the first one was counted with its connection
                sock.sendall(self._refuse(HttpError(429)))
                break
            first = False
            self.requests += 1
            said = self._answer(request, client, own)
            sock.settimeout(RESPONSE)
            sock.sendall(said)
            if b"\r\nConnection: close\r\n" in said[: said.find(b"\r\n\r\n") + 2]:
                break
        close_gently(sock, LINGER)

    def _read(self, sock: gsocket.socket, reader: RequestReader) -> Request | None:
        """Read the next request; None when the client has sent its last one. Raises HttpError, OSError."""
        until: float | None = None
        while True:
            request = reader.next()
            if request is not None:
                return request
            if reader.waits_for_continue():
                sock.settimeout(RESPONSE)
                sock.sendall(CONTINUE)
            if reader.begun and until is None:
                until = time.monotonic() + REQUEST
            left = IDLE if until is None else until - time.monotonic()
            if left <= 0:
                raise HttpError(408)
            sock.settimeout(left)
            try:
                data = sock.recv(reader.READ)
            except TimeoutError:
                if until is None:
                    return None
                raise HttpError(408) from None
            if not data:
                if reader.begun:
                    raise HttpError(400)
                return None
            reader.feed(data)
            gevent.sleep(0)  # one that sends without end gives way to others

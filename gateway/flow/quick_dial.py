"""Dials without a greenlet, for requests that name an address and need nothing but a connection to it."""

from __future__ import annotations

import _socket
import errno
import ipaddress
import os
from collections.abc import Callable
from socket import AF_INET, AF_INET6, IPPROTO_IP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM
from time import monotonic

import gevent.socket as gsocket
from gevent import get_hub

from alg.address import Address
from gateway.flow.dial import CONNECT_TIMEOUT, IP_BIND_ADDRESS_NO_PORT
from gateway.model.requests import ConnectRequest
from gateway.net.relay.poller import GONE, WRITE, Watch
from gateway.net.relay.splice import Relay
from gateway.net.relay.wheel import WheelEntry
from gateway.net.sockets import error_of, prepare
from gateway.policy.decide import Decision, PolicyInForce

DialCallback = Callable[[_socket.socket | OSError, Watch | None], None]
"""A callback with the socket and its watch, or with the error and None."""


class QuickDialer:
    """Connects in callbacks. `source` is the address of this host to connect from, or None for the kernel's choice."""

    def __init__(
        self,
        policy: PolicyInForce,
        relay: Relay,
        source: str | None = None,
        routes_by_policy: Callable[[], bool] | None = None,
    ) -> None:
        """`routes_by_policy`: whether a redirected connection may take another way than one of the gateway's own; then
        it is not simple."""
        self._routes_by_policy = routes_by_policy
        self._policy = policy
        self._relay = relay
        self._source = ipaddress.ip_address(source) if source else None

    def decide(self, request: ConnectRequest, address: Address) -> Decision | None:
        """Return the permission for a simple request; None for any other, and for one that is not permitted. Those are
        handled by the `Dialer`, which decides again."""
        if request.command == "transparent" and self._routes_by_policy is not None and self._routes_by_policy():
            return None
        policy = self._policy.current
        judgement = policy.judge(request)
        if not judgement.client.permit or policy.demands_ident(request):
            return None
        decision = judgement.at(address)
        if not decision.permit or decision.limits or decision.via or decision.chain or decision.log:
            return None
        return decision

    def start(self, address: Address, port: int, done: DialCallback, owner: object = None) -> None:
        """Connect for a client (`Watch.owner`), and call `done` from the hub; the socket does not block."""
        try:
            sock = self._begin(address, port)
        except OSError as error:
            get_hub().loop.run_callback(done, error, None)
            return
        _Dialling(sock, done, self._relay, owner)

    def _begin(self, address: Address, port: int) -> _socket.socket:
        family = AF_INET6 if address.version == 6 else AF_INET
        sock = _socket.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        try:
            prepare(sock)
            if self._source and self._source.version == address.version:
                sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((str(self._source), 0))
            code = sock.connect_ex((str(address), port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError:
            sock.close()
            raise
        return sock


class _Dialling:
    """A connection attempt under way."""

    __slots__ = ("_done", "_entry", "_sock", "_watch", "_wheel")

    def __init__(self, sock: _socket.socket, done: DialCallback, relay: Relay, owner: object) -> None:
        self._sock = sock
        self._done = done
        self._wheel = relay.wheel
        self._entry: WheelEntry = relay.wheel.add(monotonic() + CONNECT_TIMEOUT, self._expire)
        self._watch = relay.poller.watch(sock.fileno(), WRITE, self._ready, owner)

    def _ready(self, events: int) -> None:
        """The kernel has finished the attempt."""
        self._wheel.discard(self._entry)
        code = error_of(self._sock) if events & GONE else 0
        if code:
            self._fail(OSError(code, os.strerror(code)))
        else:
            self._done(self._sock, self._watch)

    def _expire(self, _now: float) -> None:
        self._fail(TimeoutError())

    def _fail(self, error: OSError) -> None:
        self._watch.forget(closing=True)
        self._sock.close()
        self._done(error, None)


def cooperative(sock: _socket.socket) -> gsocket.socket:
    """Move the connection of `sock` into a socket of gevent's, for a greenlet. `sock` must not be used afterwards."""
    return gsocket.socket(sock.family, SOCK_STREAM, sock.proto, fileno=sock.detach())

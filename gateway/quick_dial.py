"""Dialling without a greenlet: for requests that name an address and need nothing but a connection to it."""

from __future__ import annotations

import _socket
import errno
import ipaddress
import os
from collections.abc import Callable
from socket import AF_INET, AF_INET6, IPPROTO_IP, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET
from time import monotonic
from typing import TYPE_CHECKING

import gevent.socket as gsocket
from gevent import get_hub

from alg.address import Address
from gateway.dial import CONNECT_TIMEOUT, IP_BIND_ADDRESS_NO_PORT
from gateway.model import ConnectRequest
from gateway.own_address import OwnAddresses
from gateway.policy import Decision, Policy
from gateway.relay.wheel import Entry, Wheel
from gateway.sockets import prepare

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

WRITE = 2  # libev's EV_WRITE

Done = Callable[[_socket.socket | OSError], None]


class QuickDialer:
    """Connects in callbacks. `source` is the address of this host to connect from, or None for the kernel's choice."""

    def __init__(self, policy: Policy, wheel: Wheel, source: str | None = None) -> None:
        self._policy = policy
        self._wheel = wheel
        self._own = OwnAddresses()
        self._source = ipaddress.ip_address(source) if source else None

    def decide(self, request: ConnectRequest, address: Address) -> Decision | None:
        """The permission for a request that is simple; None for any other, and for what is not permitted: those are
        the `Dialer`'s, which decides again."""
        if not self._policy.decide_client(request).permit or self._policy.demands_ident(request):
            return None
        decision = self._policy.decide(request, address, own=self._own.has(request.host))
        if not decision.permit or decision.limits or decision.via or decision.chain or decision.log:
            return None
        return decision

    def start(self, address: Address, port: int, done: Done) -> None:
        """Connect, and call `done` from the hub with the socket, which does not block, or with what went wrong."""
        try:
            sock = self._begin(address, port)
        except OSError as error:
            get_hub().loop.run_callback(done, error)
            return
        watcher = get_hub().loop.io(sock.fileno(), WRITE)
        dialling = _Dialling(sock, watcher, done)
        entry = self._wheel.add(monotonic() + CONNECT_TIMEOUT, dialling.expire)
        watcher.start(self._connected, dialling, entry)

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

    def _connected(self, dialling: _Dialling, entry: Entry) -> None:
        self._wheel.discard(entry)
        dialling.end()


class _Dialling:
    """A connection attempt under way."""

    __slots__ = ("_done", "_sock", "_watcher")

    def __init__(self, sock: _socket.socket, watcher: _IoWatcher, done: Done) -> None:
        self._sock = sock
        self._watcher = watcher
        self._done = done

    def end(self) -> None:
        """The kernel has the answer."""
        self._watcher.stop()
        self._watcher.close()
        code = self._sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if code:
            self._sock.close()
            self._done(OSError(code, os.strerror(code)))
        else:
            self._done(self._sock)

    def expire(self, _now: float) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._sock.close()
        self._done(TimeoutError())


def cooperative(sock: _socket.socket) -> gsocket.socket:
    """The connection of `sock` as a socket of gevent's, for a greenlet; `sock` is of no more use."""
    return gsocket.socket(sock.family, SOCK_STREAM, sock.proto, fileno=sock.detach())

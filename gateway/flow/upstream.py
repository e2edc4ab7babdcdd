"""Connections through upstream proxies: one of a list, or all of a chain."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gevent
import gevent.socket as gsocket
import msgspec

from alg.address import Endpoint
from alg.socks.dialogue import Account, Dialogue, Granted, Parser, ProxyKind, ask, second_reply
from alg.socks.errors import Failure, ProxyError
from alg.socks.socks5 import Command
from gateway.net.sockets import endpoint
from gateway.net.tls import TlsSocket
from gateway.policy.rules import Decision

# Connects to a host (an address or a name) and port until a time of `time.monotonic()`; raises UpstreamError.
Connect = Callable[[str, int, float], gsocket.socket]


_UNSPECIFIED = ("0.0.0.0", "::", "")


class UpstreamError(Exception):
    """An upstream cannot be reached, or refuses a request. `failure` is the reason in one word."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class Tls(NamedTuple):
    """The TLS settings for an upstream. `name`: the name that its certificate must have."""

    context: ssl.SSLContext
    name: str


class Upstream(msgspec.Struct, frozen=True):
    """One upstream. `remote`: it resolves names itself; `tls`: None if it is spoken to in clear."""

    name: str
    kind: ProxyKind
    host: str
    port: int
    user: str = ""
    password: str = ""
    remote: bool = False
    tls: Tls | None = None


class Upstreams:
    """Connects through the upstreams that a decision names."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    def resolve_remotely(self, decision: Decision) -> bool:
        """Whether the upstream that connects to the server for this decision resolves names itself: all of `via`, or
        the last one of the chain."""
        names = decision.chain[-1:] or decision.via
        return bool(names) and all(self._upstreams[name].remote for name in names)

    def open(
        self, decision: Decision, host: str, port: int, connect: Connect, deadline: float
    ) -> tuple[gsocket.socket, Way]:
        """Open a tunnel to `host` (an address or a canonical name); `connect` connects to the first upstream. Also
        returns by which way. Raises the UpstreamError of the upstream that was tried last, or with which the server
        itself refused."""
        ways = [decision.chain] if decision.chain else [(name,) for name in decision.via]
        for number, names in enumerate(ways):
            # Each gets its part of the time that is left, so that a silent one does not take it all.
            until = time.monotonic() + (deadline - time.monotonic()) / (len(ways) - number)
            way = Way([self._upstreams[name] for name in names], connect, host, port)
            try:
                return way.reach(host, port, until), way
            except UpstreamError as error:
                if error.failure == "refused" or number == len(ways) - 1:
                    raise
        raise UpstreamError("failed", "no upstream")


class Way:
    """The upstreams through which a flow goes to its server. `host` and `port` are those that the last upstream was
    asked for."""

    def __init__(self, upstreams: Sequence[Upstream], connect: Connect, host: str, port: int) -> None:
        self._upstreams = upstreams
        self._connect = connect
        self._server = host, port

    def reach(self, host: str, port: int, deadline: float) -> gsocket.socket:
        """Return a connection to `host` by this way. Raises UpstreamError."""
        return self._ask(Command.CONNECT, host, port, deadline)[0]

    def bind(self, deadline: float) -> Bound:
        """Let the last upstream wait for one connection of the flow's server (BIND, RFC 1928 section 4). Raises
        UpstreamError, also if it has no BIND."""
        sock, granted = self._ask(Command.BIND, *self._server, deadline)
        host = granted.host
        if host in _UNSPECIFIED and len(self._upstreams) == 1:
            host = endpoint(sock.getpeername()).host  # it does not know how it is seen
        try:
            return Bound(sock, self._upstreams[-1], granted, Endpoint.of(host, granted.port), self._server[0])
        except ValueError:
            sock.close()
            raise UpstreamError("failed", f"upstream {self._upstreams[-1].name}: it listens at {host!r}") from None

    def _ask(self, command: Command, host: str, port: int, deadline: float) -> tuple[gsocket.socket, Granted]:
        """Go through all upstreams, and let the last one carry out `command`."""
        first, last = self._upstreams[0], self._upstreams[-1]
        try:
            sock = self._connect(first.host, first.port, deadline)
        except UpstreamError as error:
            # That the upstream refuses says nothing of the server.
            failure: Failure = "failed" if error.failure == "refused" else error.failure
            raise UpstreamError(failure, f"upstream {first.name}: {error}") from error
        granted = Granted("", 0)
        try:
            for number, upstream in enumerate(self._upstreams):
                what, target = command, (host, port)
                if upstream is not last:
                    following = self._upstreams[number + 1]
                    what, target = Command.CONNECT, (following.host, following.port)
                late = UpstreamError("timeout", "no answer in time")
                try:
                    with gevent.Timeout(max(deadline - time.monotonic(), 0.01), late):
                        if upstream.tls is not None:
                            sock = TlsSocket(sock, *upstream.tls)
                            sock.handshake()
                        account = Account(upstream.user, upstream.password)
                        granted = _converse(sock, ask(upstream.kind, what, *target, account))
                except (UpstreamError, ProxyError) as error:
                    failure = "failed" if error.failure == "refused" and upstream is not last else error.failure
                    raise UpstreamError(failure, f"upstream {upstream.name}: {error}") from error
                except ValueError as error:
                    raise UpstreamError("failed", f"upstream {upstream.name}: {error}") from error
                except OSError as error:
                    raise UpstreamError("failed", f"upstream {upstream.name}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        return sock, granted


class Bound:
    """A BIND at an upstream, which waits for one connection at `public`; used like a listening socket."""

    def __init__(
        self, sock: gsocket.socket, upstream: Upstream, first: Granted, public: Endpoint, expected: str
    ) -> None:
        """`expected`: the host for which it waits."""
        self.public = public
        self._expected = expected
        self._sock: gsocket.socket | None = sock
        self._upstream = upstream
        self._first = first

    def accept(self) -> tuple[gsocket.socket, tuple[str, int]]:
        """Wait for the connection, and return it with the address of its other end, as far as the upstream says it.
        Raises OSError, also if it came already."""
        if self._sock is None:
            raise OSError(errno.EINVAL, "the one connection has come")
        try:
            granted = _converse(self._sock, second_reply(self._upstream.kind, self._first))
        except (ProxyError, UpstreamError) as error:
            raise OSError(errno.ECONNABORTED, str(error)) from error
        sock, self._sock = self._sock, None
        return sock, (self._expected if granted.host in _UNSPECIFIED else granted.host, granted.port)

    def settimeout(self, seconds: float | None) -> None:
        """Set how long `accept` waits at most."""
        if self._sock is not None:
            self._sock.settimeout(seconds)

    def fileno(self) -> int:
        """Return the descriptor at which the upstream's word is waited for; -1 if that is over."""
        return -1 if self._sock is None else self._sock.fileno()

    def close(self) -> None:
        """Stop waiting. A connection that has come already belongs to the caller."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _converse(sock: gsocket.socket, steps: Dialogue) -> Granted:
    """Carry out a dialogue with an upstream. Nothing that comes through the tunnel is read. Raises ProxyError,
    ValueError, UpstreamError, OSError."""
    data, parse = next(steps)
    while True:
        if data:
            sock.sendall(data)
        answer = _receive(sock, parse)
        try:
            data, parse = steps.send(answer)
        except StopIteration as stop:
            granted: Granted = stop.value
            return granted


def _receive(sock: gsocket.socket, parse: Parser) -> Any:
    """Receive one answer, and not a byte more. Raises ProxyError, UpstreamError, OSError."""
    held = bytearray()
    while isinstance(result := parse(held), int):
        data = sock.recv(result)
        if not data:
            raise UpstreamError("failed", "it closed the connection")
        held += data
    return result[0]

"""Connections through upstream proxies: one of a list, or all of a chain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent
import gevent.socket as gsocket
import msgspec

from alg.socks.dialogue import Account, Dialogue, Kind, Parser, ask
from alg.socks.errors import Failure, ProxyError
from alg.socks.socks5 import Command
from gateway.policy.rules import Decision

# Connects to a host (an address or a name) and port until a time of `time.monotonic()`; raises UpstreamError.
Connect = Callable[[str, int, float], gsocket.socket]


class UpstreamError(Exception):
    """An upstream does not do what was asked, or cannot be reached; `failure` says why in one word."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class Upstream(msgspec.Struct, frozen=True):
    """One upstream. `remote`: it resolves names itself."""

    name: str
    kind: Kind
    host: str
    port: int
    user: str = ""
    password: str = ""
    remote: bool = False


class Upstreams:
    """Connects through the upstreams that a decision names."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    def resolve_remotely(self, decision: Decision) -> bool:
        """Whether the upstream that connects to the server for this decision resolves names itself: all of `via`, or
        the last one of the chain."""
        names = decision.chain[-1:] or decision.via
        return bool(names) and all(self._upstreams[name].remote for name in names)

    def open(self, decision: Decision, host: str, port: int, connect: Connect, deadline: float) -> gsocket.socket:
        """Open a tunnel to `host` (an address or a canonical name); `connect` connects to the first upstream. Raises
        the UpstreamError of the upstream that was tried last, or with which the server itself refused."""
        ways = [decision.chain] if decision.chain else [(name,) for name in decision.via]
        for number, way in enumerate(ways):
            # Each gets its part of the time that is left, so that a silent one does not take it all.
            until = time.monotonic() + (deadline - time.monotonic()) / (len(ways) - number)
            try:
                return self._through([self._upstreams[name] for name in way], host, port, connect, until)
            except UpstreamError as error:
                if error.failure == "refused" or number == len(ways) - 1:
                    raise
        raise UpstreamError("failed", "no upstream")

    def _through(
        self, way: Sequence[Upstream], host: str, port: int, connect: Connect, deadline: float
    ) -> gsocket.socket:
        first = way[0]
        try:
            sock = connect(first.host, first.port, deadline)
        except UpstreamError as error:
            # That the upstream refuses says nothing of the server.
            failure: Failure = "failed" if error.failure == "refused" else error.failure
            raise UpstreamError(failure, f"upstream {first.name}: {error}") from error
        try:
            for number, upstream in enumerate(way):
                last = number == len(way) - 1
                target = (host, port) if last else (way[number + 1].host, way[number + 1].port)
                late = UpstreamError("timeout", "no answer in time")
                try:
                    with gevent.Timeout(max(deadline - time.monotonic(), 0.01), late):
                        _converse(sock, upstream, *target)
                except (UpstreamError, ProxyError) as error:
                    failure = "failed" if error.failure == "refused" and not last else error.failure
                    raise UpstreamError(failure, f"upstream {upstream.name}: {error}") from error
                except ValueError as error:
                    raise UpstreamError("failed", f"upstream {upstream.name}: {error}") from error
                except OSError as error:
                    raise UpstreamError("failed", f"upstream {upstream.name}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        return sock


def _converse(sock: gsocket.socket, upstream: Upstream, host: str, port: int) -> None:
    """Ask an upstream for a tunnel. Nothing that comes through the tunnel is read. Raises ProxyError, ValueError,
    UpstreamError, OSError."""
    account = Account(upstream.user, upstream.password)
    steps: Dialogue = ask(upstream.kind, Command.CONNECT, host, port, account)
    data, parse = next(steps)
    while True:
        sock.sendall(data)
        answer = _receive(sock, parse)
        try:
            data, parse = steps.send(answer)
        except StopIteration:
            return


def _receive(sock: gsocket.socket, parse: Parser) -> Any:
    """Receive one answer, and not a byte more. Raises ProxyError, UpstreamError, OSError."""
    held = bytearray()
    while isinstance(result := parse(held), int):
        data = sock.recv(result)
        if not data:
            raise UpstreamError("failed", "it closed the connection")
        held += data
    return result[0]

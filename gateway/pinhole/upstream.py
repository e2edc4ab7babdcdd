"""Pinholes at an upstream proxy: it waits for the peer (SOCKS BIND), because that is where the server sees the flow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import gevent
import gevent.socket as gsocket

from alg.address import Endpoint
from gateway.flow.upstream import UpstreamError, Way
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.pinhole.backend import Carry
from gateway.pinhole.passage import Passage
from gateway.pinhole.userspace import UserspacePinholes

BIND_TIMEOUT = 10.0  # seconds for the upstream to listen, or to connect
LINGER = 1.0  # seconds in which the upstream's word that the peer has come may follow what the server says


class UpstreamPinholes:
    """The pinholes of one flow that goes through upstreams, beside the other ones of `pinholes`.

    Single connections over TCP of the flow's own server. Connections of the client to the outside need none.
    """

    outbound = False
    elsewhere = True

    def __init__(self, pinholes: UserspacePinholes, way: Way) -> None:
        self._pinholes = pinholes
        self._way = way

    def open(self, request: PinholeRequest) -> Lease:
        """Let the upstream listen, and return when a peer can connect. Raises PinholeRefused: "upstream" if it does
        not, or cannot."""
        if request.transport != "tcp" or request.kind != "once" or request.direction != "in":
            raise PinholeRefused("transport", f"{request.kind} {request.transport} is not available at an upstream")
        self._pinholes.check(request)
        try:
            bound = self._way.bind(time.monotonic() + BIND_TIMEOUT)
        except UpstreamError as error:
            raise PinholeRefused("upstream", str(error)) from error
        return self._pinholes.wait(request, bound.public, bound)

    def close(self, lease: Lease) -> None:
        """Close a pinhole, if it is still open. Not at once: the peer may have been there already, and the upstream's
        word of it comes by another connection than the server's."""
        gevent.spawn_later(LINGER, self._pinholes.close, lease)

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Refuse: there are no conversations."""
        self._pinholes.ask(request, done)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Return nothing: there are no conversations."""
        return {}

    def join(self, client: Endpoint, server: Endpoint, sources: tuple[str, str], reason: str) -> Passage:
        """Connect to the client from the address at which it knows us, to the server through the upstreams, and
        relay. Returns at once."""
        return self._pinholes.join(client, server, sources, reason, self._reach)

    def meet(self, request: PinholeRequest, inner_host: str) -> tuple[Lease, Endpoint]:
        """Let the upstream wait for the request's peer, and `inner_host` for its client. Raises PinholeRefused."""
        raise PinholeRefused("upstream", "a meeting of client and server is not available at an upstream")

    def read(self, request: PinholeRequest, carry: Carry) -> Lease:
        """Refuse: what comes by an upstream is relayed unread."""
        raise PinholeRefused("upstream", "a connection that a module reads is not available at an upstream")

    def passage(self, lease: Lease) -> Passage | None:
        """Return the passage of an open pinhole's peer."""
        return self._pinholes.passage(lease)

    def _reach(self, server: Endpoint) -> gsocket.socket:
        try:
            return self._way.reach(server.host, server.port, time.monotonic() + BIND_TIMEOUT)
        except UpstreamError as error:
            raise OSError(str(error)) from error

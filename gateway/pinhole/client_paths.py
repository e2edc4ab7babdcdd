"""Data connections of a flow whose control connection has the client's own address. They go to the server from that
address too, because servers accept data connections from no other one."""

from __future__ import annotations

import time

import gevent.socket as gsocket

from alg.address import Endpoint
from gateway.flow.dial import AsClient, DialError, connect_as_client
from gateway.model.requests import Lease, PinholeRequest
from gateway.pinhole.backend import Carry
from gateway.pinhole.passage import Passage
from gateway.pinhole.userspace import CONNECT_TIMEOUT, UserspacePinholes, connect_target


class ClientPaths:
    """The data paths of one flow, for connections between `client` and `server` that are made from the client's own
    address; all other paths are those of `pinholes`."""

    def __init__(self, pinholes: UserspacePinholes, connect: AsClient, client: Endpoint, server: Endpoint) -> None:
        self._pinholes = pinholes
        self._connect = connect
        self._client = client
        self._server = server

    def join(self, client: Endpoint, server: Endpoint, sources: tuple[str, str], reason: str) -> Passage:
        """Connect to the client from the address at which it knows us, to the server from the client's, and relay.
        Returns at once."""
        return self._pinholes.join(client, server, sources, reason, self._reach)

    def read(self, request: PinholeRequest, carry: Carry) -> Lease:
        """Serve a pinhole whose connection `carry` takes. Raises PinholeRefused."""
        return self._pinholes.read(request, carry)

    def meet(self, request: PinholeRequest, inner_host: str) -> tuple[Lease, Endpoint]:
        """Wait for the request's peer, and at `inner_host` for its client. Raises PinholeRefused."""
        return self._pinholes.meet(request, inner_host)

    def close(self, lease: Lease) -> None:
        """Close a pinhole, if it is still open."""
        self._pinholes.close(lease)

    def passage(self, lease: Lease) -> Passage | None:
        """Return the passage of an open pinhole's peer."""
        return self._pinholes.passage(lease)

    def _reach(self, server: Endpoint) -> gsocket.socket:
        if server.host != self._server.host:
            return connect_target(server)
        deadline = time.monotonic() + CONNECT_TIMEOUT
        try:
            connected = connect_as_client(self._connect, self._client, self._server, deadline, server.port)
        except DialError as error:
            raise OSError(str(error)) from error
        return connected[0] if connected is not None else connect_target(server)

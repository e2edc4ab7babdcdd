"""The transparent front for TCP: connects what iptables has redirected here to where it was going."""

from __future__ import annotations

import _socket
from collections.abc import Mapping

import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from gateway.driver.runner import Arrival, FlowRunner
from gateway.flow.dial import Dialer, DialError
from gateway.front.transparent.original_dst import original_destination
from gateway.model.requests import ConnectRequest
from gateway.net.sockets import abort, endpoint

log = structlog.get_logger()


class TransparentFront:
    """Serves clients that know nothing of the gateway. A failure becomes a reset, as it would be without a gateway.

    `published`: servers inside, by the endpoint of this host that clients outside dial.
    """

    def __init__(self, dialer: Dialer, runner: FlowRunner, published: Mapping[Endpoint, Endpoint]) -> None:
        self._published = published
        self._dialer = dialer
        self._runner = runner

    def handle(self, sock: gsocket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        client = endpoint(address)
        try:
            target = original_destination(sock)
            local = endpoint(sock.getsockname())
        except OSError:  # the client has gone
            sock.close()
            return
        if target is not None and target in self._published:
            self._publish(sock, client, target)
            return
        if target is None or target == local:
            # Nobody redirected it: a probe of our port, or our own connection that came back to us.
            log.warning("transparent.loop", client=str(client), target=str(target or local))
            abort(sock)
            return
        request = ConnectRequest("transparent", client, target.host, target.port)
        try:
            connection = self._dialer.dial(request)
        except DialError as error:
            self.fail(sock, client, target, error)
            return
        self._runner.run(sock, connection.sock, Arrival("transparent", client), connection)

    def publishes(self, target: Endpoint) -> bool:
        """Whether a server inside is published there."""
        return target in self._published

    def fail(self, sock: _socket.socket, client: Endpoint, target: Endpoint, error: DialError) -> None:
        """Reset a client's connection, and log why. Does not wait."""
        own = error.failure == "denied" and error.rule in ("own", "loopback")
        log.warning(
            "transparent.loop" if own else "transparent.failed",
            client=str(client),
            target=str(target),
            failure=error.failure,
            rule=error.rule,
            detail=str(error),
        )
        abort(sock)

    def _publish(self, sock: gsocket.socket, client: Endpoint, target: Endpoint) -> None:
        """Connect a client to the server that is published at `target`."""
        inside = self._published[target]
        try:
            server = self._dialer.reach(inside)
        except DialError as error:
            log.warning(
                "publish.failed", client=str(client), target=str(target), server=str(inside), failure=error.failure
            )
            abort(sock)
            return
        self._runner.run(sock, server, Arrival("published", client, published=target, server=inside))

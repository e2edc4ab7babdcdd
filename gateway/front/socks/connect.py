"""SOCKS CONNECT: dials, tells the client the result, and carries the flow."""

from __future__ import annotations

from gateway.driver.runner import Arrival, FlowRunner
from gateway.flow.dial import Dialer, DialError
from gateway.front.socks.request import SocksRequest
from gateway.net.sockets import endpoint


class ConnectCommand:
    """Carries out CONNECT requests (RFC 1928 section 4)."""

    def __init__(self, dialer: Dialer, runner: FlowRunner) -> None:
        self._dialer = dialer
        self._runner = runner

    def run(self, request: SocksRequest) -> None:
        """Serve one request; owns its socket."""
        try:
            connection = self._dialer.dial(request.connect_request())
        except DialError as error:
            self.fail(request, error)
            return
        server = connection.sock
        try:
            request.grant(endpoint(server.getsockname()))
        except OSError:
            connection.session.release()
            server.close()
            request.sock.close()
            return
        early = bytes(request.incoming.buffer)
        target = f"{request.host}:{request.port}"
        self._runner.run(
            request.sock, server, Arrival("socks", request.client, early, request.user, target), connection
        )

    def fail(self, request: SocksRequest, error: DialError) -> None:
        """Tell the client and the log that there is no connection; owns the request's socket."""
        request.fail(error)

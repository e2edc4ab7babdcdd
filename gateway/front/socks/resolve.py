"""Tor's extensions of SOCKS: RESOLVE (F0) asks for an address, RESOLVE_PTR (F1) for a name."""

from __future__ import annotations

from alg.address import Endpoint
from alg.socks import socks4
from gateway.flow.dial import DialError
from gateway.flow.lookup import Lookup
from gateway.front.socks.request import GOODBYE, SocksRequest
from gateway.net.sockets import close_gently


class ResolveCommand:
    """Carries out RESOLVE and RESOLVE_PTR. The client is told only addresses that it might be permitted to reach."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def run(self, request: SocksRequest) -> None:
        """Serve one request; owns its socket."""
        try:
            answer = self._answer(request)
        except DialError as error:
            request.fail(error)
            return
        try:
            request.grant(answer)
        except OSError:
            request.sock.close()
            return
        close_gently(request.sock, GOODBYE)

    def _answer(self, request: SocksRequest) -> Endpoint | str:
        judged = self._lookup.judge(request.connect_request())
        if request.reverse:
            return judged.name()
        for address in judged.addresses():
            if address.version == 4 or request.version != socks4.VERSION:
                return Endpoint(str(address), 0)
        raise DialError("name", f"{request.host} has no address that SOCKS 4 can tell")

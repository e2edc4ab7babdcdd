"""Asks ident where a rule demands it, for the user of a client that has not authenticated (RFC 1413)."""

from __future__ import annotations

from gateway.front.auth.ident import IdentClient
from gateway.front.auth.passwords import Accounts
from gateway.front.socks.request import Identity, SocksRequest
from gateway.net.sockets import endpoint
from gateway.policy.decide import PolicyInForce


class RuleIdent:
    """Asks a client's ident server if a rule that may decide on its request has `ident = true`."""

    def __init__(self, policy: PolicyInForce, ident: IdentClient, accounts: Accounts) -> None:
        self._policy = policy
        self._ident = ident
        self._accounts = accounts

    def complete(self, request: SocksRequest) -> None:
        """Return the request with the user that ident names. Without an answer it has no user, and rules that want one
        do not match. The user id of a SOCKS 4 request is ignored. Raises OSError if the client has gone."""
        if request.user is not None or not self._policy.current.demands_ident(request.connect_request()):
            return
        name = self._ident.ask(request.client, endpoint(request.sock.getsockname()))
        if name is not None:
            request.identity = Identity(name, self._accounts.groups(name))

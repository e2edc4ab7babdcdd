"""Resolves a request's host and returns the addresses that the policy permits. Used by BIND, UDP ASSOCIATE and
RESOLVE."""

from __future__ import annotations

import ipaddress
import time
from typing import NamedTuple

from alg.address import Address, canonical
from gateway.flow.dial import DialError, limit_error, looking_up
from gateway.model.hosts import parse_address
from gateway.model.requests import ConnectRequest
from gateway.net.resolver import ResolveError, Resolver
from gateway.policy.clients import ClientLimit, Clients, ClientUse, HoldingKind
from gateway.policy.decide import Decision, Judgement, PolicyInForce
from gateway.policy.limits import LimitReached, RuleLimits, Session

TIMEOUT = 10.0  # seconds to resolve a name


class AdmittedRequest(NamedTuple):
    """A permission, and the session that counts for it, which is to be released when it ends."""

    decision: Decision
    session: Session


class Lookup:
    """Resolves names, and lets the policy decide on each address."""

    def __init__(
        self, policy: PolicyInForce, resolver: Resolver, limits: RuleLimits, clients: Clients | None = None
    ) -> None:
        self._clients = clients
        self._limits = limits
        self._policy = policy
        self._resolver = resolver

    def judge(self, request: ConnectRequest) -> JudgedRequest:
        """Let the policy judge a request, once for all that is asked about it at this moment."""
        return JudgedRequest(request, self._policy.current.judge(request), self._resolver, self._limits, self._clients)

    def admit_association(self, request: ConnectRequest) -> AdmittedRequest:
        """Count a UDP association for its rule. Raises DialError "denied" if this client may send no datagram at all,
        or if the rule's limit is reached."""
        client = self._policy.current.decide_association(request)
        if not client.permit:
            raise DialError("denied", f"client {request.client.host} is not allowed", client.rule)
        return _count(self._limits, request, client)

    def take_association(self, client: str) -> ClientUse | None:
        """Count a UDP association for its client, to be given back when it ends. Raises DialError if the client has as
        many as it may have."""
        if self._clients is None:
            return None
        try:
            return self._clients.enter(HoldingKind.ASSOCIATIONS, client)
        except ClientLimit as limit:
            raise limit_error(limit) from limit

    def give_back_association(self, holder: ClientUse | None) -> None:
        """Count a UDP association as ended."""
        if self._clients is not None and holder is not None:
            self._clients.give_back(HoldingKind.ASSOCIATIONS, holder)


class JudgedRequest:
    """A request, and what the policy says of it. What waits longer than an answer takes has it judged again, because
    rules change."""

    def __init__(
        self,
        request: ConnectRequest,
        judgement: Judgement,
        resolver: Resolver,
        limits: RuleLimits,
        clients: Clients | None,
    ) -> None:
        self._request = request
        self._judgement = judgement
        self._resolver = resolver
        self._limits = limits
        self._clients = clients

    def admit(self, address: Address | None) -> AdmittedRequest:
        """Count the request, which is permitted, for the rule that permits it at `address` (None: at any address).
        Raises DialError."""
        judgement = self._judgement
        return _count(self._limits, self._request, judgement.client if address is None else judgement.at(address))

    def check(self, address: Address) -> None:
        """Raise DialError "denied" if the request may not be carried out at `address`."""
        decision = self._judgement.at(address)
        if not decision.permit:
            raise DialError("denied", f"{address} is not allowed", decision.rule)

    def addresses(self) -> list[Address]:
        """Return the permitted addresses of the request's host, at least one. May wait for name servers. Raises
        DialError."""
        self._check_client()
        host = self._request.host
        with looking_up(self._clients, self._request.client.host):
            try:
                addresses = self._resolver.resolve(host, time.monotonic() + TIMEOUT)
            except ResolveError as error:
                raise DialError("name", str(error)) from error
        permitted, refusal = [], DialError("name", f"{host} has no address")
        for address in map(canonical, addresses):
            try:
                self.check(address)
            except DialError as error:
                refusal = error
            else:
                permitted.append(address)
        if not permitted:
            raise refusal
        return permitted

    def name(self) -> str:
        """Return the name (PTR) of the address that is the request's host. Raises DialError."""
        self._check_client()
        try:
            address = parse_address(self._request.host)
        except ValueError:
            raise DialError("name", f"{self._request.host} is not an address") from None
        self.check(address)
        with looking_up(self._clients, self._request.client.host):
            try:
                return self._resolver.reverse(str(address), time.monotonic() + TIMEOUT)
            except ResolveError as error:
                raise DialError("name", str(error)) from error

    def is_of_anybody(self) -> bool:
        """Whether the request's host is the address 0, which means all hosts. Raises DialError "denied" if no rule
        allows that."""
        try:
            anybody = ipaddress.ip_address(self._request.host).is_unspecified
        except ValueError:
            return False
        if anybody and not self._judgement.permits_any_peer:
            raise DialError("denied", "no rule permits connections of any host", "any-peer")
        return anybody

    def _check_client(self) -> None:
        client = self._judgement.client
        if not client.permit:
            raise DialError("denied", f"client {self._request.client.host} is not allowed", client.rule)


def _count(limits: RuleLimits, request: ConnectRequest, decision: Decision) -> AdmittedRequest:
    try:
        return AdmittedRequest(decision, limits.enter(decision, request.client.host, time.monotonic(), request.user))
    except LimitReached as error:
        raise DialError("denied", f"rule {decision.rule}: {error}", decision.rule) from error

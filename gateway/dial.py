"""Connecting to a server on a client's behalf: resolve, let the policy decide on each address, connect to that one."""

from __future__ import annotations

import errno
import ipaddress
import time
from typing import Literal

import gevent.socket as gsocket

from alg.address import Address, Endpoint
from gateway.model import ConnectRequest
from gateway.own_address import is_local
from gateway.policy import Policy
from gateway.resolve import ResolveError, Resolver

_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>: choose the port at connect, so that one port serves many servers
CONNECT_TIMEOUT = 15.0  # seconds, for all addresses of a name together

DialFailure = Literal["denied", "name", "refused", "network", "host", "timeout", "failed"]

_FAILURES: dict[int, DialFailure] = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "network",
    errno.EHOSTUNREACH: "host",
    errno.ETIMEDOUT: "timeout",
    errno.EADDRNOTAVAIL: "network",
    errno.EAFNOSUPPORT: "network",
    errno.EACCES: "denied",  # the router's own filter says so
    errno.EPERM: "denied",
}


class DialError(Exception):
    """No connection; `failure` says why in one word, `rule` which rule denied it (failure "denied")."""

    def __init__(self, failure: DialFailure, detail: str, rule: str = "") -> None:
        super().__init__(detail)
        self.failure = failure
        self.rule = rule


class Dialer:
    """Connects. `source` is the address of this host to connect from, or None for the kernel's choice."""

    def __init__(self, policy: Policy, resolver: Resolver, source: str | None = None) -> None:
        self._policy = policy
        self._resolver = resolver
        self._source = ipaddress.ip_address(source) if source else None

    def connect(self, request: ConnectRequest) -> gsocket.socket:
        """A connected TCP socket to the request's server. Raises DialError."""
        deadline = time.monotonic() + CONNECT_TIMEOUT
        failure = DialError("name", f"{request.host} has no address")
        for address in self._addresses(request, deadline):
            decision = self._policy.decide(request, address, own=is_local(str(address)))
            if not decision.permit:
                failure = DialError("denied", f"{address} is not allowed", decision.rule)
                continue
            try:
                return _connect(address, request.port, deadline - time.monotonic(), self._source)
            except OSError as error:
                failure = _dial_error(error)
        raise failure

    def reach(self, server: Endpoint) -> gsocket.socket:
        """A connected TCP socket to a published server, which the configuration itself permits. Raises DialError."""
        try:
            return _connect(server.ip, server.port, CONNECT_TIMEOUT, None)
        except OSError as error:
            raise _dial_error(error) from error

    def _addresses(self, request: ConnectRequest, deadline: float) -> list[Address]:
        client = self._policy.decide_client(request)
        if not client.permit:
            raise DialError("denied", f"client {request.client.host} is not allowed", client.rule)
        try:
            return [ipaddress.ip_address(text) for text in self._resolver.resolve(request.host, deadline)]
        except ResolveError as error:
            raise DialError("name", str(error)) from error


def _connect(address: Address, port: int, timeout: float, source: Address | None) -> gsocket.socket:
    family = gsocket.AF_INET6 if address.version == 6 else gsocket.AF_INET
    sock = gsocket.socket(family, gsocket.SOCK_STREAM)
    try:
        sock.settimeout(max(timeout, 0.01))
        sock.setsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY, 1)
        if source and source.version == address.version:
            sock.setsockopt(gsocket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((str(source), 0))
        sock.connect((str(address), port))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _dial_error(error: OSError) -> DialError:
    if isinstance(error, TimeoutError):
        return DialError("timeout", "no answer in time")
    return DialError(_FAILURES.get(error.errno or 0, "failed"), error.strerror or str(error))

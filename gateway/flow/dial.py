"""Connects to servers for clients: resolves the name, lets the policy decide on each address, connects to a permitted
one."""

from __future__ import annotations

import _socket
import contextlib
import errno
import ipaddress
import os
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Literal, NamedTuple

import gevent
import gevent.socket as gsocket
import structlog
from gevent.queue import Empty, Queue

from alg.address import Address, Endpoint
from gateway.flow.upstream import UpstreamError, Upstreams, Way
from gateway.model.errors import PinholeRefused
from gateway.model.requests import ConnectRequest
from gateway.net.addresses import is_local
from gateway.net.resolver import ResolveError, Resolver
from gateway.net.sockets import error_of
from gateway.policy.clients import ClientLimit, Clients, HoldingKind
from gateway.policy.decide import Decision, Judgement, PolicyInForce
from gateway.policy.limits import LimitReached, RuleLimits, Session

log = structlog.get_logger()

IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>: choose the port at connect, so that one port serves many servers
CONNECT_TIMEOUT = 15.0  # seconds, for all addresses of a name together
ATTEMPT_DELAY = 0.25  # seconds until the next address is tried too (RFC 8305 section 8)

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
    """No connection was made. `failure` is the reason in one word, `rule` the rule that denied it (failure
    "denied")."""

    def __init__(self, failure: DialFailure, detail: str, rule: str = "") -> None:
        super().__init__(detail)
        self.failure = failure
        self.rule = rule


class Connection(NamedTuple):
    """A connection for a client. `session` counts for the rule, and is to be released when the flow ends. `server`: the
    server's endpoint; None if an upstream has resolved the name."""

    sock: gsocket.socket
    decision: Decision
    session: Session
    server: Endpoint | None
    seen: Endpoint | None = None
    """The endpoint that the server sees, if the connection has the client's own address on this side of the NAT."""
    way: Way | None = None
    """The upstreams that it goes through."""


AsClient = Callable[[Endpoint, Endpoint, int], tuple[_socket.socket, Endpoint]]
"""A function that begins a connection from a redirected client's own address to the server that it had dialled, or to
another port of that host if one is named, and returns the endpoint that the server sees: `BrokerClient.connect`. Raises
PinholeRefused."""


class Dialer:
    """Connects to servers. `source` is the address of this host to connect from, or None for the kernel's choice.

    `as_client`: used for redirected connections, unless something else says from where to connect. They then take the
    way that the client's packets would take, and the NAT treats them like those.
    """

    def __init__(
        self,
        policy: PolicyInForce,
        resolver: Resolver,
        source: str | None = None,
        limits: RuleLimits | None = None,
        upstreams: Upstreams | None = None,
        clients: Clients | None = None,
        as_client: AsClient | None = None,
    ) -> None:
        """`clients`: limits how many names each client may have resolved at a time."""
        self._clients = clients
        self._policy = policy
        self._resolver = resolver
        self._source = ipaddress.ip_address(source) if source else None
        self._limits = limits or RuleLimits()
        self._upstreams = upstreams or Upstreams({})
        self._as_client = as_client if source is None else None

    def dial(self, request: ConnectRequest) -> Connection:
        """Connect to the request's server, directly or through upstreams. Raises DialError."""
        deadline = time.monotonic() + CONNECT_TIMEOUT
        judgement = self._policy.current.judge(request)
        client, by_name = judgement.client, judgement.by_name
        if not client.permit:
            _note(request, client)
            raise DialError("denied", f"client {request.client.host} is not allowed", client.rule)
        if by_name is not None and self._upstreams.resolve_remotely(by_name):
            _note(request, by_name)
            return self._enter(request, by_name, [], deadline)
        failure = None
        for decision, addresses in self._groups(request, judgement, deadline):
            _note(request, decision)
            if not decision.permit:
                failure = failure or DialError("denied", f"{addresses[0]} is not allowed", decision.rule)
                continue
            try:
                return self._enter(request, decision, addresses, deadline)
            except DialError as error:
                failure = error
        raise failure or DialError("name", f"{request.host} has no address")

    def reach(self, server: Endpoint) -> gsocket.socket:
        """Connect a TCP socket to a published server, which the configuration itself permits. Raises DialError."""
        try:
            return _connect(server.ip, server.port, CONNECT_TIMEOUT, None)
        except OSError as error:
            raise dial_error(error) from error

    def _groups(
        self, request: ConnectRequest, judgement: Judgement, deadline: float
    ) -> list[tuple[Decision, list[Address]]]:
        """Group the addresses of the request's host by the decision on them, in the order in which they are tried.
        Denied ones come first, so that a failure to connect is what is reported in the end."""
        groups: list[tuple[Decision, list[Address]]] = []
        for address in self._addresses(request, deadline):
            decision = judgement.at(address)
            for other, addresses in groups:
                if other == decision:
                    addresses.append(address)
                    break
            else:
                groups.append((decision, [address]))
        return sorted(groups, key=lambda group: group[0].permit)

    def _addresses(self, request: ConnectRequest, deadline: float) -> list[Address]:
        with looking_up(self._clients, request.client.host):
            try:
                return [ipaddress.ip_address(text) for text in self._resolver.resolve(request.host, deadline)]
            except ResolveError as error:
                raise DialError("name", str(error)) from error

    def _enter(
        self, request: ConnectRequest, decision: Decision, addresses: list[Address], deadline: float
    ) -> Connection:
        """Connect within the limits of the rule. Without addresses the upstream gets the name."""
        try:
            session = self._limits.enter(decision, request.client.host, time.monotonic(), request.user)
        except LimitReached as error:
            raise DialError("denied", f"rule {decision.rule}: {error}", decision.rule) from error
        try:
            if not decision.via and not decision.chain:
                if request.command == "transparent" and self._as_client is not None:
                    server = Endpoint.of(addresses[0], request.port)
                    connected = connect_as_client(self._as_client, request.client, server, deadline)
                    if connected is not None:
                        return Connection(connected[0], decision, session, server, connected[1])
                sock, address = race(addresses, request.port, deadline, self._source)
                return Connection(sock, decision, session, Endpoint.of(address, request.port))
            return self._through(request, decision, addresses, session, deadline)
        except BaseException:
            session.release()
            raise

    def _through(
        self,
        request: ConnectRequest,
        decision: Decision,
        addresses: list[Address],
        session: Session,
        deadline: float,
    ) -> Connection:
        hosts = [str(address) for address in addresses] or [request.host]
        for number, host in enumerate(hosts):
            until = time.monotonic() + (deadline - time.monotonic()) / (len(hosts) - number)
            try:
                sock, way = self._upstreams.open(decision, host, request.port, self._to_upstream, until)
            except UpstreamError as error:
                if number == len(hosts) - 1:
                    raise DialError(error.failure, str(error)) from error
                continue
            server = Endpoint(host, request.port) if addresses else None
            return Connection(sock, decision, session, server, way=way)
        raise DialError("name", f"{request.host} has no address")

    def _to_upstream(self, host: str, port: int, deadline: float) -> gsocket.socket:
        """Connect to an upstream, which the configuration itself permits."""
        try:
            addresses = [ipaddress.ip_address(text) for text in self._resolver.resolve(host, deadline)]
            return race(addresses, port, deadline, self._source_for(addresses))[0]
        except ResolveError as error:
            raise UpstreamError("host", str(error)) from error
        except DialError as error:
            failure = "host" if error.failure == "name" else error.failure
            raise UpstreamError(failure, str(error)) from error

    def _source_for(self, addresses: list[Address]) -> Address | None:
        """Return the address to connect from. For an upstream on this very host the kernel chooses."""
        if self._source is None or any(is_local(str(address)) for address in addresses):
            return None
        return self._source


@contextlib.contextmanager
def looking_up(clients: Clients | None, client: str) -> Iterator[None]:
    """Count a name as being resolved for a client, as long as that takes. Raises DialError if there are too many
    already."""
    if clients is None:
        yield
        return
    try:
        holder = clients.enter(HoldingKind.LOOKUPS, client)
    except ClientLimit as limit:
        raise limit_error(limit) from limit
    try:
        yield
    finally:
        clients.give_back(HoldingKind.LOOKUPS, holder)


def limit_error(limit: ClientLimit) -> DialError:
    """Return the DialError for a client that has as much as it may have of something."""
    return DialError("denied", str(limit), f"limits.{limit.kind.label}")


def connect_as_client(
    connect: AsClient, client: Endpoint, server: Endpoint, deadline: float, port: int = 0
) -> tuple[gsocket.socket, Endpoint] | None:
    """Connect from the client's address to the server that it has dialled, or to another port of that host. Returns the
    socket, and the endpoint that the server sees; None where that is not possible. Raises DialError."""
    try:
        sock, seen = connect(client, server, port)
    except PinholeRefused as refused:
        if refused.rule == "connect":
            code = int(refused.detail)
            raise dial_error(OSError(code, os.strerror(code))) from None
        log.info("transparent.own_address", client=str(client), target=str(server), rule=refused.rule)
        return None
    try:
        gsocket.wait_write(sock.fileno(), max(deadline - time.monotonic(), 0.01), TimeoutError())
        if code := error_of(sock):
            raise OSError(code, os.strerror(code))
        sock.setsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY, 1)
    except OSError as error:
        sock.close()
        raise dial_error(error) from error
    except BaseException:
        sock.close()
        raise
    return gsocket.socket(sock.family, gsocket.SOCK_STREAM, sock.proto, fileno=sock.detach()), seen


def race(
    addresses: list[Address], port: int, deadline: float, source: Address | None
) -> tuple[gsocket.socket, Address]:
    """Happy Eyeballs (RFC 8305): connect to the first of the addresses that answers. The families take turns; the next
    attempt begins when one has failed, or after ATTEMPT_DELAY. Raises the DialError of the attempt that failed first.
    """
    waiting = _alternate(addresses)
    results: Queue[tuple[Address, gsocket.socket | OSError]] = Queue()
    running: dict[Address, gevent.Greenlet[..., None]] = {}
    failure: DialError | None = None

    def attempt(address: Address) -> None:
        try:
            result: gsocket.socket | OSError = _connect(address, port, deadline - time.monotonic(), source)
        except OSError as error:
            result = error
        results.put((address, result))

    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                running[address] = gevent.spawn(attempt, address)
            try:
                address, result = results.get(timeout=ATTEMPT_DELAY if waiting else None)
            except Empty:
                continue
            del running[address]
            if isinstance(result, OSError):
                failure = failure or dial_error(result)
                continue
            return result, address
    finally:
        gevent.killall(list(running.values()))
        while not results.empty():  # connections that came too late
            late = results.get()[1]
            if not isinstance(late, OSError):
                late.close()
    raise failure or DialError("name", "there is no address")


def _alternate(addresses: list[Address]) -> list[Address]:
    """Order the addresses with the families in turns (RFC 8305 section 4), otherwise as given."""
    unique = list(dict.fromkeys(addresses))
    first = [address for address in unique if address.version == unique[0].version]
    other = [address for address in unique if address.version != unique[0].version]
    alternating = [address for pair in zip_longest(first, other) for address in pair]
    return [address for address in alternating if address is not None]


def _note(request: ConnectRequest, decision: Decision) -> None:
    """Write the log line that a rule with `log` asks for."""
    if decision.log:
        getattr(log, decision.log)(
            "rule.permit" if decision.permit else "rule.deny",
            rule=decision.rule,
            command=request.command,
            client=str(request.client),
            target=f"{request.host}:{request.port}",
            user=request.user,
        )


def _connect(address: Address, port: int, timeout: float, source: Address | None) -> gsocket.socket:
    family = gsocket.AF_INET6 if address.version == 6 else gsocket.AF_INET
    sock = gsocket.socket(family, gsocket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY, 1)
        if source and source.version == address.version:
            sock.setsockopt(gsocket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((str(source), 0))
        code = sock.connect_ex((str(address), port))
        if code == errno.EINPROGRESS:
            gsocket.wait_write(sock.fileno(), max(timeout, 0.01), TimeoutError())
            code = error_of(sock)
        if code:
            raise OSError(code, os.strerror(code))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def dial_error(error: OSError) -> DialError:
    """Return the DialError for the failure of a connection attempt."""
    if isinstance(error, TimeoutError):
        return DialError("timeout", "no answer in time")
    return DialError(_FAILURES.get(error.errno or 0, "failed"), error.strerror or str(error))

"""The five calls of the first SOCKS library (D. Koblas, "SOCKS", 1992, table 1), with their order and meaning.

A program of the classic kind replaces connect by Rconnect, bind by Rbind and so on, and keeps its sockets. The proxy is
the one of `Rinit`, otherwise the one that the user has configured (`gateway.client.proxy.configured`).
"""

from __future__ import annotations

import errno
import socket
import weakref

from alg.socks.dialogue import Granted
from alg.socks.socks5 import Command
from gateway.client.blocking import UNSPECIFIED, Address, Deadline, StepRunner, connect_socket
from gateway.client.proxy import Chain, Via, configured
from gateway.client.session import request, second

TIMEOUT = 60.0  # seconds for a connection, where the socket has no timeout itself

_Bound = tuple[Chain, StepRunner, Granted]
_bound: weakref.WeakKeyDictionary[socket.socket, _Bound] = weakref.WeakKeyDictionary()
_via: list[Chain] = []


def Rinit(via: Via | None = None) -> None:
    """Go through these proxies from now on; None: those that the user has configured. Raises ProxySyntaxError."""
    _via[:] = [] if via is None else [Chain.of(via)]


def Rconnect(sock: socket.socket, name: Address) -> None:
    """Connect to a host (a name or an address) and port. Raises ProxyError."""
    connect_socket(sock, _chain(), name[0], name[1], sock.gettimeout() or TIMEOUT)


def Rbind(sock: socket.socket, name: Address, remote: Address) -> None:
    """Get an endpoint at which `remote` may connect; Rgetsockname returns it. The proxy chooses the endpoint, whatever
    `name` is. Raises ProxyError."""
    chain = _chain()
    carrier = StepRunner(Deadline(sock.gettimeout() or TIMEOUT), sock)
    before = sock.gettimeout()
    try:
        first = carrier.carry_out(request(chain, Command.BIND, remote[0], remote[1]))
    finally:
        sock.settimeout(before)
    _bound[sock] = chain, carrier, first


def Rlisten(sock: socket.socket, backlog: int) -> None:
    """Do nothing: after Rbind the socket listens already, for one peer. Raises OSError before Rbind."""
    _of(sock)


def Raccept(sock: socket.socket) -> tuple[socket.socket, Address]:
    """Wait for the peer, and return a socket for it and its endpoint. `sock` may be closed then. Raises ProxyError."""
    chain, carrier, first = _of(sock)
    before = sock.gettimeout()
    carrier.deadline = Deadline(before)
    try:
        peer = carrier.carry_out(second(chain.last, first))
    finally:
        sock.settimeout(before)
    del _bound[sock]
    accepted = sock.dup()
    accepted.settimeout(None)
    return accepted, (peer.host, peer.port)


def Rgetsockname(sock: socket.socket) -> Address:
    """After Rbind, return the proxy's endpoint, which the peer has to be told; otherwise what getsockname returns."""
    if sock not in _bound:
        host, port = sock.getsockname()[:2]
        return str(host), int(port)
    _, carrier, first = _bound[sock]
    return (carrier.proxy[0] if first.host in UNSPECIFIED else first.host), first.port


def _of(sock: socket.socket) -> _Bound:
    try:
        return _bound[sock]
    except KeyError:
        raise OSError(errno.EINVAL, "Rbind comes before that") from None


def _chain() -> Chain:
    chain = _via[0] if _via else configured()
    if chain is None:
        raise OSError(errno.EDESTADDRREQ, "no proxy is configured: ALGATE_PROXY, ALL_PROXY or SOCKS_SERVER names one")
    return chain

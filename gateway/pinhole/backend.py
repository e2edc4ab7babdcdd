"""The interfaces of pinhole backends, as drivers use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import gevent.socket as gsocket

from alg.address import Endpoint
from gateway.flow.table import Flow
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.pinhole.passage import Passage


class ConversationBackend(Protocol):
    """A backend of conversations (UDP).

    `ask` opens or changes one; `done` is called later, and must not block, with the lease as it is then or the reason
    of the refusal. `traffic`: packets in and out of the leases with these ids, as far as they are known.
    """

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None: ...

    def close(self, lease: Lease) -> None: ...

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]: ...


class Backend(ConversationBackend, Protocol):
    """A backend of single connections too. `open` waits, and raises PinholeRefused.

    `outbound`: whether the backend supports pinholes for connections of the client to the outside. `elsewhere`: whether
    its pinholes are at another host than this one, and so at the address that their lease says. `passage`: of the peer
    of a pinhole that was just opened; None: this process has no part in it.
    """

    outbound: bool
    elsewhere: bool

    def open(self, request: PinholeRequest) -> Lease: ...

    def passage(self, lease: Lease) -> Passage | None: ...


Carry = Callable[[Flow, gsocket.socket, gsocket.socket], None]
"""Carries a flow to its end, between the socket of its client and that of its server."""


class DataPaths(Protocol):
    """A backend that makes data connections itself. `meet` raises PinholeRefused; its second result is where the client
    connects. `read` too: it is a pinhole whose connection `carry` takes, with its two sockets. `join`
    returns the passage at the client."""

    def join(self, client: Endpoint, server: Endpoint, sources: tuple[str, str], reason: str) -> Passage: ...

    def read(self, request: PinholeRequest, carry: Carry) -> Lease: ...

    def meet(self, request: PinholeRequest, inner_host: str) -> tuple[Lease, Endpoint]: ...

    def passage(self, lease: Lease) -> Passage | None: ...

    def close(self, lease: Lease) -> None: ...

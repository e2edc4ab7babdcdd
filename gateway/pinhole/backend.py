"""What a driver asks of a backend of pinholes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from alg.address import Endpoint
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate


class ConversationBackend(Protocol):
    """A backend of conversations (UDP).

    `ask` opens one or changes it; `done` is called later, not to be kept waiting, with the lease as it is then or with
    why not. `traffic`: packets in and out of the leases with these ids, of those of which something is known.
    """

    def ask(self, wish: PinholeRequest | PinholeUpdate, done: Done) -> None: ...

    def close(self, lease: Lease) -> None: ...

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]: ...


class Backend(ConversationBackend, Protocol):
    """A backend of single connections too: `open` waits, and raises PinholeRefused.

    `outbound`: whether a pinhole for a connection of the client to the outside means anything to it.
    """

    outbound: bool

    def open(self, request: PinholeRequest) -> Lease: ...


class DataPaths(Protocol):
    """Makes data connections itself. `meet` raises PinholeRefused; its second result is where the client connects."""

    def join(self, client: Endpoint, server: Endpoint, sources: tuple[str, str], reason: str) -> None: ...

    def meet(self, request: PinholeRequest, inner_host: str) -> tuple[Lease, Endpoint]: ...

    def close(self, lease: Lease) -> None: ...

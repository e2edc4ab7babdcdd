"""Two backends as one: single connections by one of them, conversations (UDP) by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.pinhole.backend import Backend
from gateway.pinhole.passage import Passage


class SplitPinholes:
    """The pinholes of SOCKS clients, and of published servers. TCP connections come through the worker, as the client's
    own connections do. Media that a session describes do not, so the kernel serves them (decision 0050)."""

    outbound = False  # as of the userspace backend
    elsewhere = False

    def __init__(self, connections: Backend, conversations: Backend) -> None:
        self._connections = connections
        self._conversations = conversations

    def open(self, request: PinholeRequest) -> Lease:
        """Open a pinhole for a connection. Raises PinholeRefused."""
        return (self._connections if request.single else self._conversations).open(request)

    def passage(self, lease: Lease) -> Passage | None:
        """Return the passage of the peer of a pinhole for a connection."""
        return self._connections.passage(lease) if lease.single else None

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Open or change a conversation. `done` is called later."""
        self._conversations.ask(request, done)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Return packets in and out of conversations."""
        return self._conversations.traffic(leases)

    def close(self, lease: Lease) -> None:
        """Close a pinhole, if it is still open."""
        (self._connections if lease.single else self._conversations).close(lease)

"""Two backends as one: single connections by one of them, conversations (UDP) by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.pinhole.backend import Backend


class SplitPinholes:
    """For SOCKS clients: what they open by TCP comes through us, as their own connections do; media that a session
    describes do not, so they are the kernel's (decision 0052)."""

    outbound = False  # as of the userspace backend

    def __init__(self, connections: Backend, conversations: Backend) -> None:
        self._connections = connections
        self._conversations = conversations

    def open(self, request: PinholeRequest) -> Lease:
        """Raises PinholeRefused."""
        return (self._connections if request.single else self._conversations).open(request)

    def ask(self, wish: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Open or change a conversation; `done` is told later."""
        self._conversations.ask(wish, done)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Packets in and out of conversations."""
        return self._conversations.traffic(leases)

    def close(self, lease: Lease) -> None:
        """Close it, if it is still open."""
        (self._connections if lease.single else self._conversations).close(lease)

"""The kernel backend: pinholes whose data never enters Python. The broker opens them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.passage import Passage


class KernelPinholes:
    """Kernel pinholes, for clients whose way out is this router."""

    outbound = True
    elsewhere = False

    def __init__(self, broker: BrokerClient) -> None:
        self._broker = broker

    def open(self, request: PinholeRequest) -> Lease:
        """Open a pinhole, and wait for the broker. Raises PinholeRefused."""
        return self._broker.open(request)

    def passage(self, lease: Lease) -> Passage | None:
        """Return None: what the peer sends first is there before anything that it says afterwards."""
        return None

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Open a pinhole, or change an open conversation, without waiting. `done` is called in the event loop with the
        lease as it is then, or the refusal."""
        self._broker.ask(request, done)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Return packets in and out of those of these conversations that are open. Raises PinholeRefused."""
        return self._broker.count(leases)

    def close(self, lease: Lease) -> None:
        """Close a pinhole, if it is still open. A connection that it admitted goes on, a conversation ends. Does not
        wait."""
        self._broker.close(lease.id)

"""The kernel backend: pinholes whose data never enters Python. The broker opens them."""

from __future__ import annotations

from gateway.broker.client import BrokerClient
from gateway.model import Lease, PinholeRequest


class KernelPinholes:
    """Pinholes for clients whose route back is this router."""

    outbound = True

    def __init__(self, broker: BrokerClient) -> None:
        self._broker = broker

    def open(self, request: PinholeRequest) -> Lease:
        """Open a pinhole; waits for the broker. Raises PinholeRefused."""
        return self._broker.open(request)

    def close(self, lease: Lease) -> None:
        """Close it, if it is still open; what it admitted lives on. Does not wait."""
        self._broker.close(lease.id)

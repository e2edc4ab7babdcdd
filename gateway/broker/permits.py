"""The limits of the broker: what a process may ask for, and which ports it can get beside the programs and rules of
this host."""

from __future__ import annotations

from gateway.broker.foreign import ForeignForwardings
from gateway.broker.limits import BrokerLimits
from gateway.broker.ports import can_bind
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Network, PinholeRequest, transports_of


class BrokerPermits:
    """Answers by the limits of the moment. `inside`: the networks of clients; `foreign`: ports that an operator's own
    rules forward."""

    def __init__(self, table: str, limits: BrokerLimits) -> None:
        self.foreign = ForeignForwardings(table)
        self.configure(limits)

    def configure(self, limits: BrokerLimits) -> None:
        """Use other limits from now on."""
        self.inside: tuple[Network, ...] = tuple(limits.inside)
        self._kinds, self._reserved = limits.kinds, limits.reserved

    def check_kind(self, slot: int, request: PinholeRequest) -> None:
        """Raise PinholeRefused unless the process of this slot may ask for pinholes of this kind. Ports of its own it
        may always ask for, and where a conversation is."""
        kind, allowed = request.kind, self._kinds.get(slot, frozenset())
        if request.find or kind == "local" or kind in allowed or (kind == "read" and "conversation" in allowed):
            return
        raise PinholeRefused("kind", f"no module of this process declares {kind}")

    def is_free(self, request: PinholeRequest, port: int) -> bool:
        """Whether a request can have this public port, as far as this host is concerned."""
        if request.kind == "mapping" and self._is_reserved(request, port):
            return False
        # That the NAT translates to an address that is none of this host's is what it was asked for.
        return all(
            can_bind(transport, request.public_host or "", port, foreign=request.along is not None)
            for transport in transports_of(request.transport)
        )

    def _is_reserved(self, request: PinholeRequest, port: int) -> bool:
        """Whether mappings must not have a port, because it belongs to the gateway, or because a forwarding of another
        program takes precedence."""
        return port in self._reserved or any(
            self.foreign.has(transport, request.public_host or "", port)
            for transport in transports_of(request.transport)
        )

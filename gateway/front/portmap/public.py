"""Which addresses of this router the world sees, where no flow is there of which the NAT could be asked."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence

from gateway.model.requests import Network
from gateway.net.addresses import PublicAddress, facing_the_world, public_address, source_towards

AGE = 1.0  # seconds that an answer of the routing table is believed


class PublicAddresses:
    """The address that faces the default route, or `network.outside` (`outside`), by family. An address that is
    `inside` is no public one."""

    def __init__(self, outside: str, inside: Sequence[Network]) -> None:
        self._outside = outside
        self._inside = inside
        self._known: dict[int, tuple[float, PublicAddress | None]] = {}

    def __call__(self, version: int) -> PublicAddress | None:
        """Return the address of a family (4 or 6); None: there is none now."""
        now = time.monotonic()
        known = self._known.get(version)
        if known is None or known[0] < now:
            try:
                found = self._find(version)
            except OSError:  # no descriptor is left to ask with: what was found before is still the best answer
                found = known[1] if known is not None else None
            known = self._known[version] = now + AGE, found
        return known[1]

    def _find(self, version: int) -> PublicAddress | None:
        named = self._outside != "auto" and (6 if ":" in self._outside else 4) == version
        facing = facing_the_world(version)
        if facing is None and named:  # a network without a default route
            facing = source_towards(self._outside)
        if facing is None:
            return None
        public = public_address(self._outside, facing)
        address = ipaddress.ip_address(public.local)
        return None if any(address in network for network in self._inside) or address.is_loopback else public

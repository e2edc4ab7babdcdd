"""Holds as leases of the broker: each is opened there, renewed in time, and closed."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import time
from collections.abc import Sequence
from typing import Protocol

import gevent
import msgspec

from alg.address import Endpoint
from gateway.front.portmap.table import Hold, MappingKey
from gateway.lease.validate import LONGEST_CONVERSATION
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.observe.log import get_logger

PATIENCE = 45.0
"""Seconds for which a broker that does not answer is asked again for what was open: it may be about to start."""

_PAUSE = 0.2  # seconds, where the broker says that it was too fast

log = get_logger()


class LeaseBroker(Protocol):
    """The requests to the broker (gateway.pinhole.client.BrokerClient). Each may raise PinholeRefused."""

    def open(self, request: PinholeRequest) -> Lease: ...

    def update(self, update: PinholeUpdate) -> Lease: ...

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]: ...

    def close(self, lease_id: str) -> None: ...


class LeaseGone(Exception):
    """The lease of a hold does not exist any more."""


class Leases:
    """Asks the broker. Every method but `close` waits for it."""

    def __init__(self, broker: LeaseBroker) -> None:
        self._broker = broker
        self._until = 0.0
        self.be_patient()

    def be_patient(self) -> None:
        """Much is to be opened again, from now on: a broker that does not answer is asked for PATIENCE seconds."""
        self._until = time.monotonic() + PATIENCE

    def open(self, key: MappingKey, hold: Hold, public: PublicAddress | None, suggested: int, exact: bool) -> Lease:
        """Open a lease for a hold, at `public` (None: nothing is translated). `suggested`: the public port that is
        wanted, 0: any; `exact`: that or none. Sets `hold.lease` and `leased`. Raises PinholeRefused."""
        client, transport, port = key
        now, ttl = time.monotonic(), _ttl(hold)
        suggested = suggested if public is not None else 0
        lease = self._broker.open(
            PinholeRequest(
                flow=f"{hold.holder}-{hold.credential}" if hold.credential else hold.holder,
                reason=f"map.{hold.holder}",
                client=client,
                direction="in",
                transport=transport,
                target=Endpoint(client, port),
                peer=None,
                public_host=None if public is None else public.local,
                ttl=ttl,
                kind="mapping",
                peers=_peers(hold.filters),
                suggested=suggested or None,
                exact=bool(exact and suggested),
            )
        )
        hold.lease, hold.leased = lease.id, now + ttl
        return lease

    def renew(self, hold: Hold, filters: tuple[str, ...] | None = None) -> Lease:
        """Let the lease of a hold last as long as the hold, as far as the broker allows. `filters`: new filters, if
        they have changed. Raises LeaseGone if the lease does not exist any more, and PinholeRefused."""
        now, ttl = time.monotonic(), _ttl(hold)
        peers = msgspec.UNSET if filters is None else _peers(filters)
        try:
            lease = self._broker.update(PinholeUpdate(hold.lease, ttl=ttl, peers=peers))
        except PinholeRefused as refusal:
            if refusal.rule == "lease":
                raise LeaseGone from refusal
            raise
        hold.leased = now + ttl
        return lease

    def reopen(self, key: MappingKey, hold: Hold, public: PublicAddress | None, port: int, exact: bool) -> Lease | None:
        """Renew a lease, or open it anew with the public port that it had; None: it is not to be had any more."""
        while True:
            try:
                if hold.lease:
                    return self.renew(hold)
                return self.open(key, hold, public, port, exact)
            except LeaseGone:
                hold.lease = ""
            except PinholeRefused as refusal:
                if refusal.rule == "rate":
                    gevent.sleep(_PAUSE)
                elif refusal.rule != "broker" or time.monotonic() >= self._until:
                    log.warning("portmap.lost", client=key[0], protocol=key[1], port=key[2], detail=str(refusal)[:200])
                    return None

    def close(self, hold: Hold) -> None:
        """Close the lease of a hold, if it has one, without waiting."""
        if hold.lease:
            self._broker.close(hold.lease)
            hold.lease = ""

    def end(self, holds: Sequence[Hold]) -> None:
        """Close the leases of holds, and wait until the kernel has done so. A client that is told that its mapping has
        ended then finds the port closed."""
        closed = [hold.lease for hold in holds if hold.lease]
        for hold in holds:
            self.close(hold)
        with contextlib.suppress(PinholeRefused):  # then the kernel ends it by its time
            self._broker.count(closed)  # is answered after what was asked before

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return packets in and out of those that are open. Raises PinholeRefused."""
        return self._broker.count(leases)


def _ttl(hold: Hold) -> float:
    return max(1.0, math.floor(min(hold.expires - time.monotonic() + 0.5, LONGEST_CONVERSATION)))


def _peers(filters: Sequence[str]) -> tuple[str, ...] | None:
    """Return the peers of filters as the broker takes them: without prefixes that lie within another one; None: all
    hosts."""
    if not filters:
        return None
    v4 = [ipaddress.IPv4Network(text) for text in filters if ":" not in text]
    v6 = [ipaddress.IPv6Network(text) for text in filters if ":" in text]
    return tuple(map(str, (*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6))))

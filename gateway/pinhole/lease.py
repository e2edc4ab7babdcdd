"""The table of leases: who holds which pinhole, until when, and which ports may be given out.

Pure: the times, the random source and the test whether a port is free are arguments. `now` is monotonic time in
seconds; `unix` is wall clock time and only goes into `Lease.expires`, so that a step of the clock ends no lease.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from alg.address import Endpoint
from gateway.errors import PinholeRefused
from gateway.model import Lease, PinholeRequest, Transport

HOLD = 10.0
"""Seconds that a port rests after its pinhole closed: long enough for the SYN retransmissions (1, 3, 7 s) of a late
peer, short enough for 1,000 pinholes/s from 10,000 ports."""

_RANDOM_TRIES = 32

_Public = tuple[Transport, Endpoint]


@dataclass(slots=True)
class _Entry:
    lease: Lease
    owner: int
    deadline: float
    used: bool = False


class LeaseTable:
    """Leases of one backend.

    `ports`: lowest and highest public port. `per_client`: how many a client may hold; `total`: how many there may be.
    A lease that was used up (`use`) counts no more and is not listed, but keeps its port until its time is over or
    somebody closes it.
    """

    def __init__(
        self,
        *,
        backend: Literal["kernel", "userspace"],
        ports: tuple[int, int],
        per_client: int = 64,
        total: int = 8192,
        hold: float = HOLD,
    ) -> None:
        self._backend: Literal["kernel", "userspace"] = backend
        self._low, self._high = ports
        self._per_client = per_client
        self._total = total
        self._hold = hold
        self._entries: dict[str, _Entry] = {}
        self._clients: dict[str, dict[str, Lease]] = {}
        self._busy: dict[_Public, float] = {}
        self._live = 0
        self._deadlines: list[tuple[float, str]] = []
        self._resting: list[tuple[float, Transport, Endpoint]] = []

    def open(
        self,
        request: PinholeRequest,
        *,
        now: float,
        unix: float,
        rng: random.Random,
        is_free: Callable[[int], bool],
        owner: int = 0,
    ) -> Lease:
        """Make a lease. For direction "in" its public port is random, free (`is_free`) and not used lately.

        `owner` is whoever may close it (a worker's slot). PinholeRefused "quota" (client), "full" (all), "ports".
        """
        if len(self._clients.get(request.client, ())) >= self._per_client:
            raise PinholeRefused("quota", f"{request.client} holds {self._per_client} pinholes")
        if self._live >= self._total:
            raise PinholeRefused("full", f"there are {self._total} pinholes")
        if request.direction == "in":
            if request.public_host is None:
                raise PinholeRefused("public", "no public address")
            public = self._choose(request.transport, request.public_host, now, rng, is_free)
        else:
            public = request.target
        lease = Lease(
            id=f"{rng.getrandbits(64):016x}",
            flow=request.flow,
            reason=request.reason,
            client=request.client,
            direction=request.direction,
            protocol=request.transport,
            public=public,
            target=request.target,
            peer=request.peer,
            uses=request.uses,
            expires=unix + request.ttl,
            backend=self._backend,
        )
        self.restore(lease, owner=owner, deadline=now + request.ttl)
        return lease

    def restore(self, lease: Lease, *, owner: int, deadline: float, used: bool = False) -> None:
        """Put a lease in that is already open (read back from the kernel); no quota is asked."""
        self._entries[lease.id] = _Entry(lease, owner, deadline, used)
        heapq.heappush(self._deadlines, (deadline, lease.id))
        if lease.direction == "in":
            self._busy[lease.protocol, lease.public] = math.inf
        if not used:
            self._clients.setdefault(lease.client, {})[lease.id] = lease
            self._live += 1

    def use(self, lease_id: str) -> None:
        """The lease was used up: its pinhole is no longer open."""
        entry = self._entries[lease_id]
        if not entry.used:
            entry.used = True
            self._forget_client(entry.lease)

    def close(self, lease_id: str, *, now: float, owner: int | None = None) -> Lease | None:
        """Take a lease out, used or not; None if there is none or it is somebody else's than `owner`'s."""
        entry = self._entries.get(lease_id)
        if entry is None or (owner is not None and entry.owner != owner):
            return None
        return self._remove(entry, now)

    def close_flow(self, flow: str, *, now: float) -> list[Lease]:
        """Take out all leases of a flow."""
        return [self._remove(entry, now) for entry in list(self._entries.values()) if entry.lease.flow == flow]

    def close_owner(self, owner: int, *, now: float) -> list[Lease]:
        """Take out all leases of an owner."""
        return [self._remove(entry, now) for entry in list(self._entries.values()) if entry.owner == owner]

    def close_all(self, *, now: float) -> list[Lease]:
        """Take out all leases."""
        return [self._remove(entry, now) for entry in list(self._entries.values())]

    def expire(self, now: float) -> list[Lease]:
        """Take out what is past its time; those that nobody had used come back."""
        while self._resting and self._resting[0][0] <= now:
            until, protocol, public = heapq.heappop(self._resting)
            if self._busy.get((protocol, public)) == until:
                del self._busy[protocol, public]
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            entry = self._entries.get(lease_id)
            if entry is not None:
                self._remove(entry, now)
                if not entry.used:
                    expired.append(entry.lease)
        return expired

    def deadline(self) -> float | None:
        """When `expire` has something to do, or None."""
        while self._deadlines and self._deadlines[0][1] not in self._entries:
            heapq.heappop(self._deadlines)
        ends = [queue[0][0] for queue in (self._deadlines, self._resting) if queue]
        return min(ends, default=None)

    def live(self) -> list[Lease]:
        """All open pinholes."""
        return [entry.lease for entry in self._entries.values() if not entry.used]

    def of_client(self, client: str) -> list[Lease]:
        """The open pinholes of a client."""
        return list(self._clients.get(client, {}).values())

    def __len__(self) -> int:
        """How many pinholes are open."""
        return self._live

    def _choose(
        self, transport: Transport, host: str, now: float, rng: random.Random, is_free: Callable[[int], bool]
    ) -> Endpoint:
        def usable(port: int) -> bool:
            return self._busy.get((transport, Endpoint(host, port)), -math.inf) <= now and is_free(port)

        for _ in range(_RANDOM_TRIES):
            port = rng.randint(self._low, self._high)
            if usable(port):
                return Endpoint(host, port)
        size = self._high - self._low + 1
        start = rng.randrange(size)
        for step in range(size):
            port = self._low + (start + step) % size
            if usable(port):
                return Endpoint(host, port)
        raise PinholeRefused("ports", f"no port between {self._low} and {self._high} is free")

    def _remove(self, entry: _Entry, now: float) -> Lease:
        lease = entry.lease
        del self._entries[lease.id]
        if not entry.used:
            self._forget_client(lease)
        if lease.direction == "in":
            until = now + self._hold
            self._busy[lease.protocol, lease.public] = until
            heapq.heappush(self._resting, (until, lease.protocol, lease.public))
        return lease

    def _forget_client(self, lease: Lease) -> None:
        self._live -= 1
        leases = self._clients[lease.client]
        del leases[lease.id]
        if not leases:
            del self._clients[lease.client]


def lease_row(lease: Lease) -> dict[str, Any]:
    """A lease as `algate pinholes --json` shows it: endpoints as text, `expires` in Unix time."""
    return {
        "id": lease.id,
        "protocol": lease.protocol,
        "direction": lease.direction,
        "public": str(lease.public),
        "target": str(lease.target),
        "peer": lease.peer,
        "client": lease.client,
        "reason": lease.reason,
        "flow": lease.flow,
        "backend": lease.backend,
        "expires": lease.expires,
    }

"""Which call IDs servers use for the calls of PPTP of clients. Pure; times are monotonic.

Packets of a call have no port, but a call ID that their receiver has chosen (RFC 2637, 2.14 and 4.1). Clients behind
one public address may choose the same one for the same server, which then has to use another one for one of them.
"""

from __future__ import annotations

import random
from collections import deque

from alg.address import Endpoint
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease

REST = 60.0
"""Seconds that a call ID rests before it is another client's. Connection tracking remembers where its packets lead for
30 seconds after the last one (nf_conntrack_gre_timeout)."""

_TRIES = 64

_Call = tuple[str, str, int]  # public address, server, call ID


class CallIds:
    """The call IDs of one backend."""

    def __init__(self, rest: float = REST) -> None:
        self._rest = rest
        self._held: dict[_Call, str] = {}  # by which client
        self._inward: set[_Call] = set()  # the same by the client's address, whatever the public one is
        self._outward: dict[_Call, str] = {}  # client, server, the server's call ID: of which lease
        self._resting: dict[_Call, tuple[float, str]] = {}  # until when, and whose it was
        self._queue: deque[tuple[float, _Call]] = deque()

    def choose(self, public: str, server: str, client: Endpoint, now: float, rng: random.Random) -> int:
        """Return the call ID that `server` has to use for a call of `client`, which has chosen `client.port`: that one,
        unless it is another call's. Raises PinholeRefused "ports"."""
        self._tick(now)
        for number in (client.port, *(rng.randrange(1, 0x10000) for _ in range(_TRIES))):
            call = public, server, number
            _, was = self._resting.get(call, (0.0, client.host))
            if call not in self._held and was == client.host and (client.host, server, number) not in self._inward:
                return number
            if public == client.host:  # nothing is translated, so there is no other one to be had
                break
        raise PinholeRefused("ports", f"no call ID of {server} is free")

    def check(self, client: str, server: str, second: int | None, lease_id: str = "") -> None:
        """Raise PinholeRefused "taken" if the server's call ID `second` is that of another lease of the client."""
        if second is not None and self._outward.get((client, server, second), lease_id) != lease_id:
            raise PinholeRefused("taken", f"{client} has a call with the call ID {second} of {server}")

    def take(self, lease: Lease) -> None:
        """Mark the call IDs of a lease as used."""
        call = _call_of(lease)
        self._held[call] = lease.client
        self._resting.pop(call, None)
        self._inward.add((lease.client, *call[1:]))
        self.answered(lease)

    def answered(self, lease: Lease) -> None:
        """Mark the server's call ID of a lease as used."""
        if lease.second is not None:
            self._outward[lease.client, lease.peer or "", lease.second] = lease.id

    def forget_answer(self, lease: Lease) -> None:
        """Mark the server's call ID of a lease as free."""
        if lease.second is not None:
            self._outward.pop((lease.client, lease.peer or "", lease.second), None)

    def give_back(self, lease: Lease, now: float) -> None:
        """Mark the call ID of a lease as free again; it begins to rest."""
        call = _call_of(lease)
        self._held.pop(call, None)
        self._inward.discard((lease.client, *call[1:]))
        self.forget_answer(lease)
        self._resting[call] = now + self._rest, lease.client
        self._queue.append((now + self._rest, call))

    def _tick(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            until, call = self._queue.popleft()
            if self._resting.get(call, (0.0, ""))[0] == until:
                del self._resting[call]


def _call_of(lease: Lease) -> _Call:
    return lease.public.host, lease.peer or "", lease.public.port

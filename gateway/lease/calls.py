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
        self._resting: dict[_Call, tuple[float, str]] = {}  # until when, and whose it was
        self._queue: deque[tuple[float, _Call]] = deque()

    def choose(self, public: str, server: str, client: Endpoint, now: float, rng: random.Random) -> int:
        """Return the call ID that `server` has to use for a call of `client`, which has chosen `client.port`: that one,
        unless it is another call's. Raises PinholeRefused "ports"."""
        self._tick(now)
        for wish in (client.port, *(rng.randrange(1, 0x10000) for _ in range(_TRIES))):
            call = public, server, wish
            _, was = self._resting.get(call, (0.0, client.host))
            if call not in self._held and was == client.host:
                return wish
            if public == client.host:  # nothing is translated, so there is no other one to be had
                break
        raise PinholeRefused("ports", f"no call ID of {server} is free")

    def take(self, lease: Lease) -> None:
        """Mark the call ID of a lease as used."""
        call = _call_of(lease)
        self._held[call] = lease.client
        self._resting.pop(call, None)

    def give_back(self, lease: Lease, now: float) -> None:
        """Mark the call ID of a lease as free again; it begins to rest."""
        call = _call_of(lease)
        self._held.pop(call, None)
        self._resting[call] = now + self._rest, lease.client
        self._queue.append((now + self._rest, call))

    def _tick(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            until, call = self._queue.popleft()
            if self._resting.get(call, (0.0, ""))[0] == until:
                del self._resting[call]


def _call_of(lease: Lease) -> _Call:
    return lease.public.host, lease.peer or "", lease.public.port

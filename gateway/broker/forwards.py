"""The operator's own forwardings (`[[forward]]`): mappings that the broker opens by itself, for as long as it lives.

No process asks for them, so what clients may not have is allowed: low ports, ports of services. In the kernel they are
mappings like all others, 7,200 s long, and renewed in time: when every process is dead they end, too.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from alg.address import Endpoint
from gateway.lease.table import LeaseTable
from gateway.lease.validate import LONGEST_CONVERSATION
from gateway.model.requests import Lease, Protocol
from gateway.observe.log import get_logger

SLOT = 60_001
"""The owner of these leases. No process has it."""

AGAIN = 60.0  # seconds until one that could not be opened is tried again
_FLOW, _REASON = "forward", "map.static"

log = get_logger()


class Forward(NamedTuple):
    """One forwarding. `peers`: prefixes of those that may come; None: everybody."""

    protocol: Protocol
    public: Endpoint
    target: Endpoint
    peers: tuple[str, ...] | None


class Forwards:
    """Opens what is wanted, ends what is not wanted any more, and renews. `opening(lease, ttl)`, `renew(lease_id, ttl)`
    and `end(lease_id)` are the engine's."""

    def __init__(
        self,
        leases: LeaseTable,
        rng: random.Random,
        opening: Callable[[Lease, float], None],
        renew: Callable[[str, float], None],
        end: Callable[[str], None],
    ) -> None:
        self._leases = leases
        self._rng = rng
        self._opening = opening
        self._renew = renew
        self._end = end
        self._left_out: list[Forward] = []  # the port of each belongs to another lease
        self._due = math.inf

    def want(self, wanted: Sequence[Forward]) -> None:
        """Have exactly these from now on. Those that are open already stay."""
        wanted = [_sorted(forward) for forward in wanted]
        there = {_of(lease): lease for lease in self._leases.of_owner(SLOT)}
        for forward, lease in there.items():
            if forward not in wanted:
                self._end(lease.id)
        self._left_out = [forward for forward in wanted if forward not in there]
        self._due = -math.inf

    def deadline(self) -> float:
        """Return the time (monotonic) at which `tick` has something to do."""
        return self._due

    def tick(self, now: float) -> None:
        """Do what is due."""
        if now < self._due:
            return
        left_out = [forward for forward in self._left_out if not self._open(forward, now)]
        for forward in left_out:
            if self._due == -math.inf:
                log.error("forward.taken", public=str(forward.public), target=str(forward.target))
        self._left_out = left_out
        half = LONGEST_CONVERSATION / 2
        next_end = math.inf
        for lease in self._leases.of_owner(SLOT):
            ends = self._leases.deadline_of(lease.id)
            if ends - now < half:
                self._renew(lease.id, LONGEST_CONVERSATION)
                ends = now + LONGEST_CONVERSATION
            next_end = min(next_end, ends - half + 1.0)
        self._due = min(next_end, now + AGAIN if left_out else math.inf)

    def _open(self, forward: Forward, now: float) -> bool:
        lease = Lease(
            id=f"{self._rng.getrandbits(64):016x}",
            flow=_FLOW,
            reason=_REASON,
            client=forward.target.host,
            direction="in",
            protocol=forward.protocol,
            public=forward.public,
            target=forward.target,
            peer=None,
            expires=time.time() + LONGEST_CONVERSATION,
            backend="kernel",
            kind="mapping",
            peers=forward.peers,
        )
        if self._leases.clashes(lease):
            return False
        self._leases.restore(lease, owner=SLOT, deadline=now + LONGEST_CONVERSATION)
        self._opening(lease, LONGEST_CONVERSATION)
        return True


def _of(lease: Lease) -> Forward:
    return _sorted(Forward(lease.protocol, lease.public, lease.target, lease.peers))


def _sorted(forward: Forward) -> Forward:
    """Return a forwarding with its prefixes sorted, so that it can be compared with one that was read from the
    kernel."""
    return forward if forward.peers is None else forward._replace(peers=tuple(sorted(forward.peers)))

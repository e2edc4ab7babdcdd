"""The table of leases: which owner holds which pinhole, until when, and which ports may be given out.

Pure: the times, the random source and the test whether a port is free are arguments. `now` is monotonic time in
seconds. `unix` is wall clock time and only goes into `Lease.expires`, so a step of the clock ends no lease.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from alg.address import Endpoint
from gateway.lease.calls import CallIds
from gateway.lease.ports import HOLD, PublicPorts
from gateway.lease.quotas import LeaseLimits, Quotas, by_address
from gateway.lease.sockets import SHARING, PublicSockets, public_ranges
from gateway.model.errors import PinholeRefused
from gateway.model.requests import (
    Lease,
    PinholeRequest,
    PinholeUpdate,
    Traffic,
    Transport,
    transports_of,
)
from gateway.observe.metrics import Sample
from gateway.observe.pinhole_log import lease_fields, shown_kind
from gateway.policy.clients import ClientIdentity

NOTHING = Traffic()

_LEAST_SLACK = 1024  # deadlines out of date that are kept, at least


_COMMON = {"kernel": (("once", "tcp"), ("conversation", "udp")), "userspace": (("local", "tcp"), ("local", "udp"))}
"""Kinds and protocols that the metrics show even where there are none, by backend."""


class _Entry:
    __slots__ = ("deadline", "lease", "owner", "payer", "used")

    def __init__(self, lease: Lease, owner: int, deadline: float, payer: ClientIdentity, used: bool) -> None:
        self.lease = lease
        self.owner = owner
        self.deadline = deadline
        self.payer = payer
        self.used = used


class LeaseTable:
    """The leases of one backend, within `limits`. `identify` says which addresses are one client. `hold`: seconds until
    a port is given out again. A lease that was used (`use`) does not count and is not listed any more, but keeps its
    port until its time is over or its owner closes it."""

    def __init__(
        self,
        *,
        backend: Literal["kernel", "userspace"],
        limits: LeaseLimits,
        hold: float = HOLD,
        identify: Callable[[str], ClientIdentity] = by_address,
    ) -> None:
        self._backend: Literal["kernel", "userspace"] = backend
        self._quotas = Quotas(limits, identify, backend == "userspace")
        self._ports = PublicPorts(hold)
        self._ports.configure(limits.ports, limits.read_ports)
        self._mapping_ports = limits.mapping_ports
        self._entries: dict[str, _Entry] = {}
        self._sockets = PublicSockets()
        self._calls = CallIds()
        self._deadlines: list[tuple[float, str]] = []

    def configure(self, limits: LeaseLimits) -> None:
        """Use other limits from now on; what is open stays open."""
        self._quotas.configure(limits)
        self._ports.configure(limits.ports, limits.read_ports)
        self._mapping_ports = limits.mapping_ports

    def open(
        self,
        request: PinholeRequest,
        *,
        now: float,
        unix: float,
        rng: random.Random,
        is_free: Callable[[int], bool],
        owner: int = 0,
        is_free_inside: Callable[[int], bool] | None = None,
    ) -> Lease:
        """Make a lease. For direction "in" its public port is random, free (`is_free`; at the inner address of an
        exchange `is_free_inside`) and was not used recently.

        `owner` is the worker's slot that may close it. Raises PinholeRefused "rate", "quota" (the client's), "share"
        (the client has as much as is left for all others), "full" (all pinholes), "ports", "taken".
        """
        payer = self._quotas.check(request, now)
        public = self._public(request, now, rng, is_free)
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
            kind=request.kind,
            expires=unix + request.ttl,
            backend="userspace" if request.kind == "local" else self._backend,
            peers=request.peers,
            second=request.second,
            visitor=request.visitor,
            follows=request.public_host if request.direction == "out" else None,
        )
        if request.inner_host is not None:
            width = 1 if request.second is None else 2
            inner = self._ports.choose(
                request.inner_host, ("udp",), width, False, now, rng, is_free_inside or is_free, request.client
            )
            lease = msgspec.structs.replace(lease, outer=request.outer, outer_second=request.outer_second, inner=inner)
            if self._sockets.sharing(lease):
                raise PinholeRefused("taken", f"{request.outer} or {request.target} has a public port already")
        self._add(lease, owner, now + request.ttl, payer)
        return lease

    def of_socket(self, target: Endpoint) -> Lease | None:
        """Return the open conversation of an inside socket, whatever its owner."""
        found = [self._entries[each].lease for each in self._sockets.of("udp", target)]
        return next((lease for lease in found if lease.kind in SHARING), None)

    def clashes(self, lease: Lease) -> bool:
        """Whether a lease that is not here yet has a public port, or an inside socket, of another one."""
        return bool(self._sockets.sharing(lease)) or any(
            self._sockets.is_held(transport, lease.public) for transport in transports_of(lease.protocol)
        )

    def sharing(self, lease: Lease) -> list[tuple[int, Lease, float]]:
        """Return the other leases that have a public port in common with this one: owner, lease and deadline."""
        entries = [self._entries[each] for each in self._sockets.sharing(lease)]
        return [(entry.owner, entry.lease, entry.deadline) for entry in entries]

    def check_limits(self, request: PinholeRequest, now: float) -> None:
        """Count a request for its client's rate. Raises PinholeRefused if `open` would refuse it for a limit."""
        self._quotas.check(request, now)

    def restore(self, lease: Lease, *, owner: int, deadline: float, used: bool = False) -> None:
        """Add a lease that is already open (read back from the kernel). No quota is checked."""
        self._add(lease, owner, deadline, self._quotas.payer(lease), used)

    def _add(self, lease: Lease, owner: int, deadline: float, payer: ClientIdentity, used: bool = False) -> None:
        self._entries[lease.id] = _Entry(lease, owner, deadline, payer, used)
        self._end_by(deadline, lease.id)
        for first, count in public_ranges(lease):
            for transport in transports_of(lease.protocol):
                self._ports.take(transport, first, count)
        if lease.kind == "gre":
            self._calls.take(lease)
        self._sockets.add(lease)
        if not used:
            self._quotas.add(lease, payer)

    def use(self, lease_id: str) -> None:
        """Mark a lease as used up: its pinhole is no longer open."""
        entry = self._entries[lease_id]
        if not entry.used:
            entry.used = True
            self._quotas.remove(entry.lease, entry.payer)

    def find(self, lease_id: str) -> Lease | None:
        """Return the open lease with this id."""
        entry = self._entries.get(lease_id)
        return entry.lease if entry is not None and not entry.used else None

    def get(self, lease_id: str, *, owner: int) -> Lease | None:
        """Return the open lease with this id, if it belongs to this owner."""
        entry = self._entries.get(lease_id)
        return entry.lease if entry is not None and entry.owner == owner and not entry.used else None

    def changed(self, update: PinholeUpdate, *, unix: float, owner: int) -> Lease:
        """Return what an update would make of a conversation; nothing is changed yet. Raises PinholeRefused "lease",
        "taken"."""
        lease = self.get(update.lease, owner=owner)
        if lease is None or lease.single:
            raise PinholeRefused("lease", "no open conversation of this worker")
        second = lease.second if update.second is msgspec.UNSET else update.second
        is_call = lease.kind == "gre"
        if is_call:
            self._calls.check(lease.client, lease.peer or "", second, lease.id)
        if (second is None) != (lease.second is None) and not is_call:
            raise PinholeRefused("ports", "a pair stays a pair, a single port single")
        new = msgspec.structs.replace(
            lease,
            expires=lease.expires if update.ttl is msgspec.UNSET else unix + update.ttl,
            peers=lease.peers if update.peers is msgspec.UNSET else update.peers,
            target=lease.target if update.target is msgspec.UNSET else update.target,
            second=second,
        )
        moved = (new.target, new.second) != (lease.target, lease.second) and not is_call
        if lease.kind == "exchange":
            if moved and lease.target.port:
                raise PinholeRefused("public", "the server's port is known already")
        elif (lease.public == lease.target or lease.backend == "userspace" or lease.kind == "mapping") and moved:
            raise PinholeRefused("public", "what is not translated cannot move")
        if moved and self._sockets.sharing(lease):
            raise PinholeRefused("taken", f"{lease.target} is not of this conversation alone")
        if moved and self._sockets.sharing(new):
            raise PinholeRefused("taken", f"{new.target} has a public port already")
        return new

    def replace(self, lease: Lease, *, deadline: float) -> None:
        """Replace the lease with the same id."""
        entry = self._entries[lease.id]
        if (entry.lease.target, entry.lease.second) != (lease.target, lease.second):
            self._sockets.remove(entry.lease)
            self._sockets.add(lease)
        if lease.kind == "gre":
            self._calls.forget_answer(entry.lease)
            self._calls.answered(lease)
        self._quotas.replace(lease, entry.payer)
        entry.lease, entry.deadline = lease, deadline
        self._end_by(deadline, lease.id)

    def _end_by(self, deadline: float, lease_id: str) -> None:
        heapq.heappush(self._deadlines, (deadline, lease_id))
        if len(self._deadlines) > 2 * len(self._entries) + _LEAST_SLACK:  # of leases that were closed or extended
            self._deadlines = [(entry.deadline, lease_id) for lease_id, entry in self._entries.items()]
            heapq.heapify(self._deadlines)

    def deadline_of(self, lease_id: str) -> float:
        """Return when this lease ends."""
        return self._entries[lease_id].deadline

    def close(self, lease_id: str, *, now: float, owner: int | None = None) -> Lease | None:
        """Remove a lease, used or not, and return it; None if there is none or it is not `owner`'s."""
        entry = self._entries.get(lease_id)
        if entry is None or (owner is not None and entry.owner != owner):
            return None
        return self._remove(entry, now)

    def of_owner(self, owner: int) -> list[Lease]:
        """Return all leases of an owner."""
        return [entry.lease for entry in self._entries.values() if entry.owner == owner]

    def owned(self) -> list[tuple[int, Lease]]:
        """Return all open pinholes, each with its owner."""
        return [(entry.owner, entry.lease) for entry in self._entries.values() if not entry.used]

    def close_owner(self, owner: int, *, now: float) -> list[Lease]:
        """Remove all leases of an owner, and return them."""
        return [self._remove(entry, now) for entry in list(self._entries.values()) if entry.owner == owner]

    def close_all(self, *, now: float) -> list[Lease]:
        """Remove all leases, and return them."""
        return [self._remove(entry, now) for entry in list(self._entries.values())]

    def expire(self, now: float) -> list[Lease]:
        """Remove leases that are past their time, and return those that were not used."""
        self._ports.tick(now)
        expired: list[Lease] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease_id = heapq.heappop(self._deadlines)
            entry = self._entries.get(lease_id)
            if entry is not None and entry.deadline <= now:  # not when it was extended meanwhile
                self._remove(entry, now)
                if not entry.used:
                    expired.append(entry.lease)
        return expired

    def deadline(self) -> float | None:
        """Return when `expire` has something to do, or None."""
        while self._deadlines and self._deadlines[0][1] not in self._entries:
            heapq.heappop(self._deadlines)
        soonest = self._ports.deadline()
        if self._deadlines:
            soonest = min(soonest, self._deadlines[0][0])
        return None if soonest == math.inf else soonest

    def live(self) -> list[Lease]:
        """Return all open pinholes."""
        return [entry.lease for entry in self._entries.values() if not entry.used]

    def samples(self) -> list[Sample]:
        """Return the number of open pinholes of this backend by kind and protocol, for the metrics."""
        counts: Counter[tuple[str, str]] = Counter(dict.fromkeys(_COMMON[self._backend], 0))
        counts.update((shown_kind(lease), lease.protocol) for lease in self.live() if lease.backend == self._backend)
        return [(("algate_pinholes", self._backend, *key), number) for key, number in counts.items()]

    def of_client(self, client: str) -> list[Lease]:
        """Return the open pinholes that count against this client's quota."""
        return self._quotas.of_client(client)

    def of_host(self, client: str) -> list[Lease]:
        """Return the open pinholes that count against the quota of the host that has this address, by any of its
        addresses."""
        return self._quotas.of_host(client)

    def __len__(self) -> int:
        """The number of open pinholes."""
        return len(self._quotas)

    def _public(
        self, request: PinholeRequest, now: float, rng: random.Random, is_free: Callable[[int], bool]
    ) -> Endpoint:
        if request.direction == "out":
            return request.target
        if request.kind == "gre":
            host = request.public_host or request.client
            self._calls.check(request.client, request.peer or "", request.second)
            call = self._calls.choose(host, request.peer or "", request.target, now, rng)
            return Endpoint(host, call)
        if request.kind in SHARING or request.kind == "exchange":
            shared = self._shared(request, is_free)
            if shared is not None:
                return shared
        if request.public_host is None:
            if request.exact and request.suggested != request.target.port:
                raise PinholeRefused("wish", "nothing is translated: the port is the target's own")
            if request.single and request.along is None:
                raise PinholeRefused("public", "no public address")
            return request.target
        transports, read = transports_of(request.transport), request.kind == "read"
        width = 1 if request.second is None else 2
        if request.kind == "mapping":
            return self._mapped(request, request.public_host, transports, rng, is_free)
        if request.kind == "conversation":
            inside = (request.target.host, request.target.port, request.second)
            again = self._ports.again(request.public_host, inside, now, is_free)
            if again is not None:
                return again
        return self._ports.choose(request.public_host, transports, width, read, now, rng, is_free, request.peer)

    def _shared(self, request: PinholeRequest, is_free: Callable[[int], bool]) -> Endpoint | None:
        """The public endpoint that the socket of a request has already, if all that it asks for is to be had there."""
        first = self._sockets.bound(request)
        if first is None:
            return None
        if request.suggested is not None and request.exact and request.suggested != first.port:
            raise PinholeRefused("wish", f"{request.target} has the public port {first.port}")
        if (request.kind == "read") != self._ports.is_read(first.port) and request.kind != "mapping":
            raise PinholeRefused("taken", f"{request.target} has the public port {first.port}")
        translated = request.public_host is not None
        for transport in transports_of(request.transport):
            for offset, port in enumerate((request.target.port, request.second)):
                public = Endpoint(first.host, first.port + offset)
                if port is None or self._sockets.of(transport, Endpoint(request.target.host, port)) or not translated:
                    continue
                if not self._ports.may_have(public.host, (transport,), public.port, is_free):
                    raise PinholeRefused("taken", f"{request.target} has the public port {first.port}, alone")
        return first

    def _mapped(
        self,
        request: PinholeRequest,
        host: str,
        transports: tuple[Transport, ...],
        rng: random.Random,
        is_free: Callable[[int], bool],
    ) -> Endpoint:
        """Choose the public endpoint of a mapping: the suggested port, or any of those that mappings may have."""
        low, high = self._mapping_ports
        suggested = request.suggested
        if (
            suggested is not None
            and low <= suggested <= high
            and self._ports.may_have(host, transports, suggested, is_free)
        ):
            return Endpoint(host, suggested)
        if request.exact:
            raise PinholeRefused("wish", f"port {request.suggested} is not to be had")
        return self._ports.beyond(host, transports, (low, high), rng, is_free)

    def _remove(self, entry: _Entry, now: float) -> Lease:
        lease = entry.lease
        del self._entries[lease.id]
        if not entry.used:
            self._quotas.remove(lease, entry.payer)
        self._give_back(lease, self._sockets.remove(lease), now)
        return lease

    def _give_back(self, lease: Lease, all_free: bool, now: float) -> None:
        if lease.kind == "gre":
            self._calls.give_back(lease, now)
        inside = None
        if lease.kind == "conversation" and lease.public != lease.target:
            inside = (lease.target.host, lease.target.port, lease.second)
        for first, count in public_ranges(lease):
            for transport in transports_of(lease.protocol):
                if all_free:
                    self._ports.give_back(transport, first, count, now, lease.peer, inside)
                    continue
                for port in range(first.port, first.port + count):
                    public = Endpoint(first.host, port)
                    if not self._sockets.is_held(transport, public):
                        self._ports.give_back(transport, public, 1, now)


def lease_row(lease: Lease, traffic: Traffic = NOTHING) -> dict[str, Any]:
    """Return a lease as a row of `algate pinholes`: endpoints as text, `expires` in Unix time."""
    return {
        **lease_fields(lease),
        "packets": traffic.packets_in + traffic.packets_out,
        "packets_in": traffic.packets_in,
        "packets_out": traffic.packets_out,
        "bytes": traffic.bytes,
    }

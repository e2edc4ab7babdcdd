"""What clients hold of the leases of a table, and whether one of them may have one more. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from alg.bucket import Rate
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Kind, Lease, PinholeRequest, Protocol
from gateway.policy.clients import ClientIdentity

RATE = 100.0
"""Default of how many pinholes a client may open in a second, on average: more than a client that fetches small files
one by one can use."""

QUOTAS = {"mappings": 32, "anybody": 8, "calls": 8}
"""The number of pinholes of these kinds that a client may have, in place of `per_client`. A mapping lasts for hours, a
port that is open to any host is the easiest thing to abuse, and a client has only a few calls of PPTP."""

RATES = {"mappings": 10.0, "anybody": 4.0, "calls": 4.0}
"""How many of these a client may open in a second, on average, beside `rate`."""

MAPPINGS = 16384
"""Number of mappings of all clients, which do not count among the others."""

SUGGESTIBLE = (1024, 65535)
"""Public ports of mappings by default."""

SHARE = 64
"""Number of pinholes that a client may have whatever others have. Beyond that it gets another one only if more than
that number is left."""

_QUOTA_KINDS = {"mapping": "mappings", "anybody": "anybody", "exchange": "exchanges", "gre": "calls"}


class LeaseLimits(NamedTuple):
    """The limits of a table of leases.

    `ports`: lowest and highest public port; `read_ports`: those that are only for datagrams that a module reads.
    `per_client`: how many of each kind a client may hold (connections, conversations, and sockets of UDP associations);
    `total`: how many there may be, half of them those of visitors. `rate`: how many a client may open in a second, on
    average; twice as many at once. `mapping_ports`: public ports that mappings may have, `mappings`: how many of them a
    client may hold.
    """

    ports: tuple[int, int]
    read_ports: tuple[int, int] | None = None
    per_client: int = 64
    total: int = 8192
    rate: float = RATE
    mapping_ports: tuple[int, int] = SUGGESTIBLE
    mappings: int = QUOTAS["mappings"]


def by_address(address: str) -> ClientIdentity:
    """Identify clients by their addresses: each address is a client of its own."""
    return ClientIdentity(address, address)


class Quotas:
    """Counts by client. `identify`: says which addresses are one client. `userspace`: whether the leases are ports of
    a worker's own."""

    def __init__(self, limits: LeaseLimits, identify: Callable[[str], ClientIdentity], userspace: bool) -> None:
        self._identify = identify
        self._userspace = userspace
        self._clients: dict[str, dict[str, Lease]] = {}
        self._hosts: dict[str, dict[str, Lease]] = {}
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._networks: Counter[str] = Counter()
        self._live = self._visiting = self._mappings = 0
        self._rate = Rate(limits.rate, 2 * limits.rate)
        self._kind_rates = {kind: Rate(rate, 2 * QUOTAS[kind]) for kind, rate in RATES.items()}
        self._limits = limits
        self._quotas = QUOTAS | {"mappings": limits.mappings}

    def configure(self, limits: LeaseLimits) -> None:
        """Use other limits from now on. What is open stays open."""
        if limits.rate != self._limits.rate:
            self._rate = Rate(limits.rate, 2 * limits.rate)
        self._limits = limits
        self._quotas = QUOTAS | {"mappings": limits.mappings}

    def __len__(self) -> int:
        """The number of open pinholes."""
        return self._live

    def of_client(self, client: str) -> list[Lease]:
        """Return the open pinholes that count against the quota of this address."""
        return list(self._clients.get(client, {}).values())

    def of_host(self, client: str) -> list[Lease]:
        """Return the open pinholes that count against the quota of the host that has this address, by any of its
        addresses."""
        return list(self._hosts.get(self._identify(client).host, {}).values())

    def payer(self, lease: Lease) -> ClientIdentity:
        """Return whose quota a lease counts against."""
        return self._identify(_payer(lease))

    def check(self, request: PinholeRequest, now: float) -> ClientIdentity:
        """Count a request for its client's rate, and return whose quota it counts against. Raises PinholeRefused
        "rate", "quota" (the client's), "share" (the client has as much as is left for all others), "full" (all
        pinholes)."""
        client, limits = request.visitor or request.client, self._limits
        payer = self._identify(client)
        kind = _kind(request.kind, request.transport, self._userspace)
        rates = [self._rate, *([self._kind_rates[kind]] if kind in self._kind_rates else [])]
        if not all(rate.take(payer.host, now) for rate in rates):
            raise PinholeRefused("rate", f"{client} opens pinholes too fast")
        most = self._quotas.get(kind, limits.per_client)
        if self._kinds[payer.host, kind] >= most:
            key = "pinhole.per_client" if kind not in self._quotas else "most"
            raise PinholeRefused("quota", f"{client} holds {most} {kind} ({key})")
        if kind == "mappings":
            if self._mappings >= MAPPINGS:
                raise PinholeRefused("full", f"there are {MAPPINGS} mappings")
            return payer
        live = self._live - self._mappings
        if live >= limits.total:
            raise PinholeRefused("full", f"there are {limits.total} pinholes")
        held = max(len(self._hosts.get(payer.host, ())), self._networks[payer.network])
        if held >= SHARE and held >= limits.total - live:
            raise PinholeRefused("share", f"{payer.network} holds {held} pinholes, and fewer are left")
        if request.visitor is not None and self._visiting >= limits.total // 2:
            raise PinholeRefused("full", f"clients outside hold {self._visiting} pinholes")
        return payer

    def add(self, lease: Lease, payer: ClientIdentity) -> None:
        """Count a lease that is open from now on against `payer`."""
        self._clients.setdefault(_payer(lease), {})[lease.id] = lease
        self._hosts.setdefault(payer.host, {})[lease.id] = lease
        self._kinds[payer.host, _kind_of(lease)] += 1
        self._networks[payer.network] += 1
        self._live += 1
        self._mappings += lease.kind == "mapping"
        self._visiting += lease.visitor is not None

    def replace(self, lease: Lease, payer: ClientIdentity) -> None:
        """Keep the changed form of an open lease."""
        self._clients[_payer(lease)][lease.id] = lease
        self._hosts[payer.host][lease.id] = lease

    def remove(self, lease: Lease, payer: ClientIdentity) -> None:
        """Stop counting a lease."""
        host, network = payer
        self._live -= 1
        self._mappings -= lease.kind == "mapping"
        self._visiting -= lease.visitor is not None
        leases = self._clients[_payer(lease)]
        del leases[lease.id]
        if not leases:
            del self._clients[_payer(lease)]
        of_host = self._hosts[host]
        del of_host[lease.id]
        if not of_host:
            del self._hosts[host]
        kind = host, _kind_of(lease)
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
        self._networks[network] -= 1
        if not self._networks[network]:
            del self._networks[network]


def _payer(lease: Lease) -> str:
    """Return the address against whose quota a lease counts."""
    return lease.visitor or lease.client


def _kind(kind: Kind, protocol: Protocol, userspace: bool) -> str:
    """The kinds that the quotas of clients tell apart. `userspace`: it is a worker's own port."""
    own = _QUOTA_KINDS.get(kind)
    if own is not None and not userspace:
        return own
    if protocol == "tcp":
        return "connections"
    return "associations" if userspace or kind == "local" else "conversations"


def _kind_of(lease: Lease) -> str:
    return _kind(lease.kind, lease.protocol, lease.backend == "userspace")

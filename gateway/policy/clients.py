"""Limits what one client may use of what all clients share: connections, handshakes, UDP associations, lookups. Pure.

A *client* is a host: `identify` says which addresses belong to the same host, which may have one IPv4 address and many
IPv6 addresses. It also names the network of an address, for clients that have as many addresses as they like.

Two bounds hold for each kind of thing. The first is a configured number, over all workers together. The second needs no
number: a client that has more than SMALL of something gets another one only if a worker has more than that number left
for all others. So one client that takes as much as it can gets half, the next one a quarter, and something is always
left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Literal, NamedTuple

from gateway.policy.shared_counts import LIVE, SharedCounts, key_of

SMALL = 256  # of a kind: what a client may always have, as far as its number allows
REMEMBERED = 4096  # addresses; those that have nothing are forgotten beyond that
LARGE = 1024  # numbers above are not asked of other workers while this one has few


class HoldingKind(IntEnum):
    """The kinds of things that are counted for each client."""

    FLOWS = 0
    HANDSHAKES = 1
    ASSOCIATIONS = 2
    LOOKUPS = 3

    @property
    def label(self) -> str:
        """The name of the kind in the configuration, the log and the metrics."""
        return self.name.lower()


class ClientIdentity(NamedTuple):
    """The client to which an address belongs: `host` for the configured bound, `network` for the share."""

    host: str
    network: str


class ClientLimit(Exception):
    """A client has as much as it may have. `bound` is "most" (the configured number) or "share"."""

    def __init__(self, kind: HoldingKind, client: str, bound: Literal["most", "share"], most: int) -> None:
        super().__init__(f"{most} {kind.label} are the limit of {client}")
        self.kind = kind
        self.client = client
        self.bound = bound
        self.most = most


class ClientUse:
    """The present use of one host, or network, in this worker: `counts` by kind. Other workers see it in the shared
    memory."""

    __slots__ = ("_cell", "counts", "network")

    def __init__(self, shared: SharedCounts, key: int, network: ClientUse | None) -> None:
        self._cell = shared.cell(key)
        self.counts = [0] * len(HoldingKind)
        self.network = network

    def change(self, kind: int, by: int) -> None:
        """Add `by` to the count of a kind; negative to subtract."""
        counts = self.counts
        counts[kind] = number = counts[kind] + by
        cell = self._cell
        cell.words[cell.at + LIVE + kind] = number

    def everywhere(self, kind: int) -> int:
        """Return how many of a kind it has in all workers."""
        return self.counts[kind] + self._cell.live_elsewhere(kind)

    def forget(self) -> None:
        """Forget a holder that has nothing."""
        self._cell.release()


class Clients:
    """The clients of one worker, and what they have.

    `most`: the bound for each kind; 0, or no entry: no bound. `room`: how many of a kind this worker has room for, as
    far as that is known.
    """

    def __init__(
        self,
        shared: SharedCounts,
        identify: Callable[[str], ClientIdentity],
        most: Mapping[HoldingKind, int],
        room: Mapping[HoldingKind, int],
    ) -> None:
        self._shared = shared
        self._identify = identify
        self._addresses: dict[str, ClientUse] = {}
        self._holders: dict[tuple[str, str], ClientUse] = {}
        self._totals = [0] * len(HoldingKind)
        self.refused: dict[tuple[str, str], int] = {}
        self.configure(most, room)

    def configure(self, most: Mapping[HoldingKind, int], room: Mapping[HoldingKind, int]) -> None:
        """Use other bounds from now on. What clients have is not changed."""
        self._most = [most.get(kind, 0) for kind in HoldingKind]
        # What the others hold is looked at where that can matter: below an eighth of a large number it cannot for long.
        self._alone = [number >> 3 if number > LARGE else 0 for number in self._most]
        self._room = [room.get(kind, 0) for kind in HoldingKind]

    def holder(self, address: str) -> ClientUse:
        """Return the holder for an address."""
        return self._addresses.get(address) or self._find(address)

    def check(self, kind: HoldingKind, address: str) -> ClientUse:
        """Return the client's holder if it may have one more of a kind. Raises ClientLimit."""
        holder = self._addresses.get(address) or self._find(address)
        mine = holder.counts[kind]
        most = self._most[kind]
        if most and mine >= self._alone[kind] and holder.everywhere(kind) >= most:
            raise self._refusal(kind, address, "most", most)
        network = holder.network
        largest = mine if network is None else max(mine, network.counts[kind])
        if largest >= SMALL and 0 < self._room[kind] <= largest + self._totals[kind]:
            raise self._refusal(kind, address, "share", mine)
        return holder

    def take(self, kind: int, holder: ClientUse) -> None:
        """Count one more of a kind for a holder."""
        holder.change(kind, 1)
        if holder.network is not None:
            holder.network.change(kind, 1)
        self._totals[kind] += 1

    def give_back(self, kind: int, holder: ClientUse) -> None:
        """Count one less of a kind for a holder."""
        holder.change(kind, -1)
        if holder.network is not None:
            holder.network.change(kind, -1)
        self._totals[kind] -= 1

    def enter(self, kind: HoldingKind, address: str) -> ClientUse:
        """Check the bounds and count one more of a kind for a client, to be given back later. Raises ClientLimit."""
        holder = self.check(kind, address)
        self.take(kind, holder)
        return holder

    def count(self, kind: HoldingKind, address: str) -> int:
        """Return how many of a kind a client has in all workers."""
        return self.holder(address).everywhere(kind)

    @property
    def counted_alone(self) -> int:
        """How often there was no room in the shared memory, so that something is counted in this worker only."""
        return self._shared.full

    def totals(self) -> dict[str, int]:
        """Return how many there are of each kind in this worker."""
        return {kind.label: self._totals[kind] for kind in HoldingKind}

    def _refusal(self, kind: HoldingKind, address: str, bound: Literal["most", "share"], most: int) -> ClientLimit:
        self.refused[kind.label, bound] = self.refused.get((kind.label, bound), 0) + 1
        return ClientLimit(kind, address, bound, most)

    def _find(self, address: str) -> ClientUse:
        if len(self._addresses) >= REMEMBERED:
            self._forget_idle()
        host, network = self._identify(address)
        above = self._holder("network", network, None) if network != host else None
        holder = self._addresses[address] = self._holder("host", host, above)
        return holder

    def _holder(self, what: str, name: str, above: ClientUse | None) -> ClientUse:
        holder = self._holders.get((what, name))
        if holder is None:
            holder = self._holders[what, name] = ClientUse(self._shared, key_of("client", what, name), above)
        return holder

    def _forget_idle(self) -> None:
        self._addresses = {address: holder for address, holder in self._addresses.items() if any(holder.counts)}
        for key in [key for key, holder in self._holders.items() if not any(holder.counts)]:
            self._holders.pop(key).forget()

"""Transfers that have a public port: their client, their servers, their time; and their records."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field

from alg.address import Endpoint
from alg.datagrams import Entry


@dataclass(slots=True)
class Transfer:
    """One socket of a client that has asked servers for files. Times are monotonic seconds.

    `servers`: their addresses, the latest last; `began`: when a file was first asked for; `ends`: when the transfer
    counts as ended if nothing passes. `opened`: whether its port is open; `waiting`: requests that wait for that, by
    the driver's numbers. `counted`: packets in and out, as the kernel last reported; `lasts`: until when its port is
    open if the broker is told nothing more.
    """

    ref: int
    client: Endpoint
    servers: deque[str]
    began: float
    ends: float
    lasts: float
    opened: bool = False
    waiting: list[int] = field(default_factory=list)
    counted: tuple[int, int] = (0, 0)

    @property
    def peers(self) -> tuple[str, ...]:
        """Return the addresses that may send to it."""
        return tuple(self.servers)

    def entry(self) -> Entry:
        """Return the record for a successor of this process."""
        known = [*self.client, self.peers, self.began, self.ends, self.lasts, *self.counted]
        return Entry(str(self.ref), self.ref, json.dumps(known).encode())


def restored(entry: Entry) -> Transfer | None:
    """Return the open transfer that `entry` describes; None if it cannot be read."""
    if entry.ref is None or entry.record is None:
        return None
    try:
        host, port, servers, began, ends, lasts, came, went = json.loads(entry.record)
        client = Endpoint.of(str(host), int(port))
        times = float(began), float(ends), float(lasts)
        return Transfer(entry.ref, client, deque(map(str, servers)), *times, True, counted=(int(came), int(went)))
    except (ValueError, TypeError):
        return None

"""Counts failed authentications by client: a guesser waits longer and longer, and is then banned. Pure.

All workers count together (gateway/policy/shared_counts.py): a guesser has one set of attempts, and a ban holds in all
workers.

A success clears nothing, because a guesser with an account of its own could then go on for ever. Time does.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gateway.policy.shared_counts import Cell, SharedCounts, key_of

FIRST_DELAY = 0.25  # seconds before the answer to a first failure; doubles with each further one
LONGEST_DELAY = 4.0  # seconds; well within a handshake's deadline
CAPACITY = 10_000  # addresses remembered


_MILLI = 1000


@dataclass(slots=True)
class _Record:
    """What this worker has counted. The cell holds the same for the other workers: how many failures since when, and
    until when the client is banned."""

    failures: int
    since: float
    banned_until: float
    cell: Cell

    def publish(self) -> None:
        self.cell.spent = self.failures
        self.cell.mark = int(self.since * _MILLI) + 1
        self.cell.until = int(self.banned_until * _MILLI)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a failure: `delay` is the seconds until it is answered; `banned`: this failure led to a ban."""

    failures: int
    delay: float
    banned: bool


class GuessGuard:
    """Counts failures. All times are seconds of one monotonic clock, and are arguments.

    `limit` failures within `window` seconds ban a client for `ban` seconds. `limit` 0: no client is banned. `identify`
    says which addresses are one client; without it an IPv6 address counts with its /64, which outside is one household.
    At most `capacity` clients are remembered, the latest ones. `shared`: the memory in which all workers count.
    """

    def __init__(
        self,
        limit: int,
        window: float,
        ban: float,
        capacity: int = CAPACITY,
        shared: SharedCounts | None = None,
        identify: Callable[[str], str] | None = None,
    ) -> None:
        self._shared = shared or SharedCounts.alone()
        self._identify = identify or household
        self._limit = limit
        self._window = window
        self._ban = ban
        self._capacity = capacity
        self._records: OrderedDict[str, _Record] = OrderedDict()  # the latest failure last

    def __len__(self) -> int:
        return len(self._records)

    def banned(self, address: str, now: float) -> bool:
        """Whether this address may not try at all now."""
        client = self._identify(address)
        record = self._records.get(client)
        if record is not None and now < record.banned_until:
            return True
        if record is None and self._shared.left_by_predecessor(_key(client))[2] > now * _MILLI:
            return True
        return any(until > now * _MILLI for *_, until in self._shared.others(_key(client)))

    def failed(self, address: str, now: float) -> Verdict:
        """Count a failed attempt to authenticate."""
        client = self._identify(address)
        key = _key(client)
        record = self._records.get(client)
        if record is None:
            cell = self._shared.cell(key)
            since = (cell.mark - 1) / _MILLI if cell.mark else now
            record = self._records[client] = _Record(cell.spent, since, cell.until / _MILLI, cell)
        if now >= max(record.since + self._window, record.banned_until):
            record.failures, record.since, record.banned_until = 0, now, 0.0
        record.failures += 1
        record.publish()
        self._records.move_to_end(client)
        failures, banned_until = record.failures, record.banned_until
        for _, number, mark, until in self._shared.others(key):
            if now * _MILLI < max(mark + self._window * _MILLI, until):
                failures += number
                banned_until = max(banned_until, until / _MILLI)
        banned = bool(self._limit) and failures >= self._limit and now >= banned_until
        if banned:
            record.banned_until = now + self._ban
            record.publish()
        self._shrink(now)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10))
        return Verdict(failures, delay, banned)

    def _shrink(self, now: float) -> None:
        """Forget clients that have done nothing for long, and the oldest ones beyond the capacity."""
        while self._records:
            key, oldest = next(iter(self._records.items()))
            over = now >= max(oldest.since + self._window, oldest.banned_until)
            if not over and len(self._records) <= self._capacity:
                return
            self._records.pop(key).cell.release()


def _key(client: str) -> int:
    return key_of("guesser", client)


def household(address: str) -> str:
    """Return an IPv4 address as it is, an IPv6 address with its /64."""
    ip = ipaddress.ip_address(address)
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))

"""Who guesses passwords: failures counted by client address, pure. A guesser waits ever longer, and is then banned.

Successes forgive nothing, else a guesser with one account of his own could go on for ever; time does.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

FIRST_DELAY = 0.25  # seconds before the answer to a first failure; doubles with each further one
LONGEST_DELAY = 4.0  # seconds; well within a handshake's deadline
CAPACITY = 10_000  # addresses remembered


@dataclass(slots=True)
class _Record:
    failures: int
    since: float
    banned_until: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure leads to: `delay` seconds until it is answered; `banned`: this one was the last straw."""

    failures: int
    delay: float
    banned: bool


class Guard:
    """Counts failures. All times are seconds of one monotonic clock; nothing here reads it.

    `limit` failures within `window` seconds ban an address (an IPv6 one with its /64, which is one household) for
    `ban` seconds. `limit` 0: nobody is banned. At most `capacity` addresses are remembered, the latest ones.
    """

    def __init__(self, limit: int, window: float, ban: float, capacity: int = CAPACITY) -> None:
        self._limit = limit
        self._window = window
        self._ban = ban
        self._capacity = capacity
        self._records: OrderedDict[str, _Record] = OrderedDict()  # the latest failure last

    def __len__(self) -> int:
        return len(self._records)

    def banned(self, address: str, now: float) -> bool:
        """Whether this address may not try at all now."""
        record = self._records.get(_key(address))
        return record is not None and now < record.banned_until

    def failed(self, address: str, now: float) -> Verdict:
        """Count a failure."""
        key = _key(address)
        record = self._records.get(key)
        if record is None or now >= max(record.since + self._window, record.banned_until):
            record = self._records[key] = _Record(0, now, 0.0)
        record.failures += 1
        self._records.move_to_end(key)
        banned = bool(self._limit) and record.failures >= self._limit and now >= record.banned_until
        if banned:
            record.banned_until = now + self._ban
        self._shrink(now)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(record.failures - 1, 10))
        return Verdict(record.failures, delay, banned)

    def _shrink(self, now: float) -> None:
        """Forget who has done nothing for long, and the oldest beyond the capacity."""
        while self._records:
            key, oldest = next(iter(self._records.items()))
            over = now >= max(oldest.since + self._window, oldest.banned_until)
            if not over and len(self._records) <= self._capacity:
                return
            del self._records[key]


def _key(address: str) -> str:
    ip = ipaddress.ip_address(address)
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))

"""Limits log lines that a stranger can cause as often as it likes: each kind of event has a token bucket.

Without this, a stranger that sends garbage fast enough fills the disk and hides what else it does. Pure: time is an
argument.
"""

from __future__ import annotations

from alg.bucket import Rate

BURST = 200  # lines of one event
RATE = 20.0  # of them in a second after that, in one process

# Those that need no more than a packet or a connection of a stranger, or of a client gone wild.
LIMITED = frozenset(
    {
        "accept.exhausted",
        "accept.failed",
        "alg.broken",
        "alg.note",
        "alg.revoke",
        "alg.slow",
        "alg.unread",
        "auth.banned",
        "auth.failed",
        "auth.no_method",
        "auth.overloaded",
        "auth.protection",
        "broker.bad_message",
        "broker.flood",
        "client.limit",
        "console.denied",
        "console.error",
        "pinhole.flood",
        "pinhole.refused",
        "pinhole.stranger",
        "publish.failed",
        "socks.denied",
        "socks.failed",
        "socks.malformed",
        "socks.timeout",
        "socks.tls_failed",
        "socks.udp_stranger",
        "transparent.failed",
        "transparent.loop",
    }
)


class Flood:
    """Decides for each line whether it is written. The next line that is written says how many were left out."""

    def __init__(self, burst: int = BURST, rate: float = RATE) -> None:
        self._rate = Rate(rate, burst)
        self._left_out: dict[str, int] = {}  # lines of each event since one was written

    def take(self, event: str, now: float) -> int | None:
        """Return None if the line is to be left out, otherwise how many lines of this event were left out before it.
        `now`: monotonic seconds."""
        if event not in LIMITED:
            return 0
        if not self._rate.take(event, now):
            self._left_out[event] = self._left_out.get(event, 0) + 1
            return None
        return self._left_out.pop(event, 0)

"""Lines that anybody can cause as often as he likes: each kind of event has a burst, then a rate (a token bucket).

Without this, who sends garbage fast enough fills the disk, and hides what else he does. Pure: time is an argument.
"""

from __future__ import annotations

BURST = 200  # lines of one event
RATE = 20.0  # of them in a second after that, in one process

# Those that need no more than a packet or a connection of a stranger, or of a client gone wild.
LIMITED = frozenset(
    {
        "accept.exhausted",
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
        "socks.udp_stranger",
        "transparent.failed",
        "transparent.loop",
    }
)


class Flood:
    """Says of each line whether it is written; the next that is says how many were left out."""

    def __init__(self, burst: int = BURST, rate: float = RATE) -> None:
        self._burst, self._rate = burst, rate
        self._buckets: dict[str, tuple[float, float, int]] = {}  # event: tokens, when, lines left out since

    def take(self, event: str, now: float) -> int | None:
        """None: leave the line out. Else how many of this event were left out before it. `now`: monotonic seconds."""
        if event not in LIMITED:
            return 0
        tokens, then, left_out = self._buckets.get(event, (float(self._burst), now, 0))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        if tokens < 1:
            self._buckets[event] = (tokens, now, left_out + 1)
            return None
        self._buckets[event] = (tokens - 1, now, 0)
        return left_out

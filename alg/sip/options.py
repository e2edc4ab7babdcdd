"""The keys of `[alg.sip]` that only SIP has. `description` is what docs/reference/ says about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LOOK = 30.0  # seconds between two looks at what was counted of media, or less
LOOKS = 5  # in the shortest time without media that ends a call
LEAST = 10.0  # seconds: in silence RTCP comes every 5 s, give or take the half (RFC 3550, 6.2)
MOST = 86400.0


@dataclass(frozen=True, slots=True)
class SipOptions:
    """Options of the SIP module. Raises ValueError, beginning with the key, for times that make no sense."""

    media_source: Literal["sdp", "any"] = field(
        default="sdp",
        metadata={
            "description": 'Which hosts may send media in once a call is answered. "sdp": those that the far side\'s '
            'SDP names; "any": all hosts.'
        },
    )
    media_timeout: float = field(
        default=300.0,
        metadata={
            "description": "Seconds without a media packet and without a message after which a call counts as ended "
            "(its BYE was lost). At least 10. The kernel's counters are read five times in this period, "
            "and at least every 30 s."
        },
    )
    hold_timeout: float = field(
        default=7200.0,
        metadata={
            "description": "Seconds without a message after which a call that is on hold, or whose media are not "
            "counted, counts as ended. At least `media_timeout`, at most 86400."
        },
    )
    stand_down: tuple[str, ...] = field(
        default=(),
        metadata={
            "description": "Addresses of registrars and proxies that handle NAT themselves. Messages to and from them "
            "stay untouched.",
            "examples": [["203.0.113.10"]],
        },
    )
    rate: int = field(
        default=1000,
        metadata={
            "description": "Messages a second of one client that are read, on average; twice as many at once. Messages "
            "beyond that pass untouched. A telephone exchange is one client."
        },
    )

    def __post_init__(self) -> None:
        for key, value in (("media_timeout", self.media_timeout), ("hold_timeout", self.hold_timeout)):
            if not LEAST <= value <= MOST:
                raise ValueError(f"{key}: {value:g} is not between {LEAST:g} and {MOST:g} (seconds)")
        if self.hold_timeout < self.media_timeout:
            raise ValueError(f"hold_timeout: {self.hold_timeout:g} is less than media_timeout, {self.media_timeout:g}")

    @property
    def look_every(self) -> float:
        """Seconds between two `alg.api.Activity` events that the driver sends."""
        return min(LOOK, self.media_timeout / LOOKS)

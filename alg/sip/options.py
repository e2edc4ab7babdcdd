"""The keys of `[alg.sip]` that are SIP's own; `description` is what the reference says of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LOOK = 30.0  # seconds between two looks at what was counted of media, or less
LOOKS = 5  # in the shortest time without media that ends a call
LEAST = 10.0  # seconds: where nobody speaks, RTCP comes every 5 s, give or take the half (RFC 3550, 6.2)
MOST = 86400.0


@dataclass(frozen=True, slots=True)
class SipOptions:
    """Media, when a call has ended that nobody ends, and with whom SIP needs no gateway.

    ValueError for times that make no sense; it begins with the key.
    """

    media_source: Literal["sdp", "any"] = field(
        default="sdp",
        metadata={
            "description": 'Who may send media in, once there is an answer. "sdp": whom the far side\'s SDP names; '
            '"any": anybody.'
        },
    )
    media_timeout: float = field(
        default=300.0,
        metadata={
            "description": "Seconds without a media packet and without a message after which a call has ended: its BYE "
            "was lost. At least 10. The kernel's counters are looked at five times in it, and every 30 s at least."
        },
    )
    hold_timeout: float = field(
        default=7200.0,
        metadata={
            "description": "Seconds without a message after which a call has ended that is on hold, or whose media are "
            "not counted. At least `media_timeout`, at most 86400."
        },
    )
    stand_down: tuple[str, ...] = field(
        default=(),
        metadata={
            "description": "Addresses of registrars and proxies that repair NAT themselves: what is said with them "
            "stays untouched.",
            "examples": [["203.0.113.10"]],
        },
    )
    rate: int = field(
        default=1000,
        metadata={
            "description": "Messages a second of one client, twice as many at once; what is more passes untouched. A "
            "telephone exchange is one client."
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
        """Seconds between two looks of a driver at what was counted (`alg.api.Activity`)."""
        return min(LOOK, self.media_timeout / LOOKS)

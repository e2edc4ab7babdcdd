"""The keys of `[alg.sip]` that are SIP's own; `description` is what the reference says of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class SipOptions:
    """Media, and with whom SIP needs no gateway."""

    media_source: Literal["sdp", "any"] = field(
        default="sdp",
        metadata={
            "description": 'Who may send media in, once there is an answer. "sdp": whom the far side\'s SDP names; '
            '"any": anybody.'
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
        default=200,
        metadata={
            "description": "Messages a second of one client, twice as many at once; what is more passes untouched."
        },
    )

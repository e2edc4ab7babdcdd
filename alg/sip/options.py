"""The keys of `[alg.sip]`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SipOptions:
    """`media_source`: who may send media in, "sdp" (whom the far side's SDP names) or "any", once there is an answer.

    `stand_down`: addresses of registrars and proxies that repair NAT themselves. `rate`: messages a second of one
    client; twice as many at once.
    """

    media_source: str = "sdp"
    stand_down: tuple[str, ...] = ()
    rate: int = 200

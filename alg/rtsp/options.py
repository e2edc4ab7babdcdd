"""The keys of `[alg.rtsp]` that are RTSP's own; `description` is what the reference says of each."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_STREAMS = 256


@dataclass(frozen=True, slots=True)
class RtspOptions:
    """Options of RTSP. Raises ValueError for an impossible value; the message begins with the key."""

    streams: int = field(
        default=16,
        metadata={
            "description": "Streams over UDP that one connection may have at a time. Requests for more pass untouched. "
            f"Between 1 and {MOST_STREAMS}."
        },
    )

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MOST_STREAMS:
            raise ValueError(f"streams: {self.streams} is not between 1 and {MOST_STREAMS}")

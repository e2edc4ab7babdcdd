"""The keys of `[alg.tftp]` that only TFTP has. `description` is what docs/reference/ says about each."""

from __future__ import annotations

from dataclasses import dataclass, field

LEAST_IDLE, MOST_IDLE = 10.0, 300.0
MOST_RATE = 10000


@dataclass(frozen=True, slots=True)
class TftpOptions:
    """Options of the TFTP module. Raises ValueError, beginning with the key, for values that make no sense."""

    idle_timeout: float = field(
        default=30.0,
        metadata={
            "description": "Seconds without a packet after which a transfer counts as ended and its public port is "
            "closed. Between 10 and 300."
        },
    )
    rate: int = field(
        default=20,
        metadata={
            "description": "Requests a second of one client for which a public port is opened, on average; twice as "
            "many at once. Requests beyond that pass, and nothing is opened for them."
        },
    )

    def __post_init__(self) -> None:
        if not LEAST_IDLE <= self.idle_timeout <= MOST_IDLE:
            raise ValueError(
                f"idle_timeout: {self.idle_timeout:g} is not between {LEAST_IDLE:g} and {MOST_IDLE:g} (seconds)"
            )
        if not 1 <= self.rate <= MOST_RATE:
            raise ValueError(f"rate: {self.rate} is not between 1 and {MOST_RATE}")

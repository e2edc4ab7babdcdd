"""The keys of `[alg.irc]` that are IRC's own; `description` is what the reference says of each."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class IrcOptions:
    """Options of IRC."""

    outbound: bool = field(
        default=False,
        metadata={
            "description": "Whether an offer from outside lets the client connect to the endpoint that it names, where "
            "the router's firewall forwards nothing by itself. Strangers name such endpoints."
        },
    )

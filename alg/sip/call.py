"""The life of one call: its states, and the events that lead from one to the next. docs/protocols/sip.md shows the
table.

An event that is not in the table changes no state. In any state, a call is over when its last leg's BYE is answered,
when its time is up (`Calls._due`), or when it goes on at another address of its client.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from alg.address import Endpoint
from alg.api import Side
from alg.sip.sockets import InsideSocket

Key = tuple[str, bytes]
RequestKey = tuple[Side, int]  # the side that sent a request, and its CSeq


class CallState(StrEnum):
    """The states of a call, as `algate calls` shows them."""

    TRYING = "trying"  # an INVITE, and no answer yet
    EARLY = "early"  # it rings somewhere
    CONFIRMED = "confirmed"  # it was answered
    FAILED = "failed"  # it was refused or given up; the INVITE may come again, with credentials


class Happening(StrEnum):
    """The events that change a call's state."""

    INVITED = "INVITE"
    PROGRESS = "1xx but 100"
    ANSWERED = "2xx to INVITE"
    REFUSED = "3xx to 6xx to INVITE"


TRANSITIONS: dict[tuple[CallState, Happening], CallState] = {
    (CallState.TRYING, Happening.PROGRESS): CallState.EARLY,
    (CallState.TRYING, Happening.ANSWERED): CallState.CONFIRMED,
    (CallState.TRYING, Happening.REFUSED): CallState.FAILED,
    (CallState.EARLY, Happening.ANSWERED): CallState.CONFIRMED,
    (CallState.EARLY, Happening.REFUSED): CallState.FAILED,
    (CallState.FAILED, Happening.INVITED): CallState.TRYING,
    (CallState.FAILED, Happening.ANSWERED): CallState.CONFIRMED,  # another branch of a fork
}


@dataclass(slots=True)
class Call:
    """One call. `media` are the agreed sockets, `offered` those of offers under way, by the request that each belongs
    to.

    `far`: by the tag of the far side, the addresses that its session description names; `far_offered` likewise for
    offers.
    """

    key: Key
    client: Endpoint
    server: str
    caller: str
    callee: str
    since: float
    heard: float
    servers: set[str]
    state: CallState = CallState.TRYING
    media: list[InsideSocket] = field(default_factory=list)
    offered: dict[RequestKey, list[InsideSocket]] = field(default_factory=dict)
    far: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    far_offered: dict[RequestKey, tuple[bytes, tuple[str, ...]]] = field(default_factory=dict)
    legs: set[bytes] = field(default_factory=set)
    kinds: dict[int, str] = field(default_factory=dict)
    counted: dict[int, tuple[int, int]] = field(default_factory=dict)
    signalling: InsideSocket | None = None
    tag: bytes = b""  # the client's own, once there is an answer
    replaces: Key | None = None  # the same call at the address where the client was
    on_hold: bool = False  # by the client's latest description
    far_on_hold: bool = False  # by the far side's
    session_ends: float = math.inf
    ends: float = math.inf
    timer: float = math.inf  # the earliest time for which a look at it is planned
    claim: tuple[str, Key] = field(init=False)

    def __post_init__(self) -> None:
        self.claim = ("call", self.key)

    def happens(self, what: Happening, now: float) -> bool:
        """Change to the next state, if `what` leads to another one. Returns whether it did."""
        following = TRANSITIONS.get((self.state, what))
        if following is None:
            return False
        self.state, self.since = following, now
        return True


def drawing() -> str:
    """Return the table as a diagram (Mermaid)."""
    lines = ["stateDiagram-v2", f"    [*] --> {CallState.TRYING}: {Happening.INVITED}"]
    lines += [f"    {state} --> {following}: {what}" for (state, what), following in TRANSITIONS.items()]
    lines += [
        f"    {CallState.CONFIRMED} --> [*]: last BYE answered, or 5 s after one; session timer; no media, no message",
        f"    {CallState.FAILED} --> [*]: 5 s",
        f"    {CallState.EARLY} --> [*]: 240 s",
        f"    {CallState.TRYING} --> [*]: 240 s",
    ]
    return "\n".join(lines)

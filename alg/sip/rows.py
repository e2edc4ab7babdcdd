"""Calls as they are shown: `algate calls`."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint
from alg.sip.calls import Call


@dataclass(frozen=True, slots=True)
class CallMedia:
    """One stream of a call: the client's socket, what is advertised for it, who may send in (None: anyone)."""

    ref: int
    kind: str
    target: Endpoint
    public: Endpoint | None
    peers: tuple[str, ...] | None
    packets_in: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call as `algate calls` shows it. `caller` and `callee`: URIs; `state`: trying, early, confirmed, failed;
    `since`: when it came to that state, on the clock of the events."""

    client: str
    server: str
    call_id: str
    caller: str
    callee: str
    state: str
    since: float
    media: tuple[CallMedia, ...]


def row_of(call: Call) -> CallRow:
    """What is shown of a call."""
    media = {conversation.ref: conversation for conversation in call.media}
    for offered in call.offered.values():
        media.update((conversation.ref, conversation) for conversation in offered)
    return CallRow(
        call.client.host,
        call.server,
        call.key[1].decode("utf-8", "replace"),
        call.caller,
        call.callee,
        call.state,
        call.since,
        tuple(
            CallMedia(
                ref,
                call.kinds.get(ref, ""),
                conversation.target,
                conversation.public,
                conversation.peers,
                *call.counted.get(ref, (0, 0)),
            )
            for ref, conversation in media.items()
        ),
    )

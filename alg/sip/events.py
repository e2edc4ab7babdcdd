"""What the driver of SIP over UDP and `SipEngine` say to each other, beside the words of `alg.api`.

SIP over UDP is no flow: one `SipEngine` a process sees every datagram of the SIP ports between inside and outside,
as it stands in the middle of the router: the client's address is always its own (private) one, the server's always the
real one. So outbound datagrams are shown before their source is translated, inbound ones after their destination was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from alg.address import Endpoint
from alg.api import (
    Activity,
    ClosePinhole,
    Edit,
    Note,
    OpenConversation,
    Opened,
    Refused,
    Rung,
    Side,
    Tick,
    UpdateConversation,
)


class Datagram(NamedTuple):
    """`side` sent `data` (the UDP payload, whole). `client` is the inside socket, `server` the outside one.

    `packet`: the driver's number for it, not in use for another packet that waits. Answered by exactly one `Release`
    of that number, in the same call or in a later one (at most `alg.sip.session.HOLD` seconds later).
    """

    packet: int
    side: Side
    client: Endpoint
    server: Endpoint
    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The public address of the conversation `ref` is this router's no more. It is closed and opened anew; calls and
    registrations go on with the new one, and whatever the client says next names it."""

    ref: int
    now: float


class Release(NamedTuple):
    """Let the packet go, with `edits` to its payload; no edits: untouched.

    In mode "observe" the driver leaves them out.
    """

    packet: int
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = None


@dataclass(frozen=True, slots=True)
class StandDown:
    """What `client` and the address `server` say to each other is edited no more; `rule` says why.

    The driver may stop to show it these datagrams; it need not.
    """

    client: Endpoint
    server: str
    rule: str


@dataclass(frozen=True, slots=True)
class RevokeConversation:
    """Nothing that `client` and the address `server` say opens anything ever again; `rule` says why.

    As with `StandDown` the engine remembers it itself.
    """

    client: Endpoint
    server: str
    rule: str


SipEvent = Datagram | Activity | Moved | Opened | Refused | Tick
SipCommand = Release | OpenConversation | UpdateConversation | ClosePinhole | StandDown | RevokeConversation | Note

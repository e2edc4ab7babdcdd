"""What a protocol module and its driver say to each other: events in, commands out.

A module is pure. It is told what happened (`Event`), with the time as an argument, and answers with what is to be
done (`Command`). The driver (`gateway/driver/stream.py`) does it. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from alg.address import Endpoint

API = (1, 0)
"""Version of this interface. A module names the first number as its `api`: it works with every second number."""


class Side(StrEnum):
    """An end of a flow: the client opened the flow, the server accepted it."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class Mode(StrEnum):
    """What a module may do: change the payload, only say what it would change, or nothing."""

    REWRITE = "rewrite"
    OBSERVE = "observe"
    OFF = "off"


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes came from `side`; never empty."""

    side: Side
    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Closed:
    """`side` will send no more (end of stream). What it had sent before came as `Received`."""

    side: Side
    now: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The pinhole `ref` is open; `public` is what may be advertised (for an outbound one: its target).

    `inner`: of a meeting, where the client has to connect."""

    ref: int
    public: Endpoint
    now: float
    inner: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The pinhole `ref` was not opened; `rule` names why."""

    ref: int
    rule: str
    now: float


@dataclass(frozen=True, slots=True)
class Activity:
    """The conversation `ref` has carried so many packets since it was opened, in both ports together.

    Told by a driver that can count, every `look_every` seconds of a module that declares that.
    """

    ref: int
    packets_in: int
    packets_out: int
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `deadline()` asked for has come."""

    now: float


Event = Received | Closed | Opened | Refused | Activity | Tick

# --- commands -------------------------------------------------------------------------------------------------------


class Edit(NamedTuple):
    """Replace `data[start:end]` of a `Deliver` by `replacement`; `reason` as "ftp.port"."""

    start: int
    end: int
    replacement: bytes
    reason: str


class Rung(Protocol):
    """The place of a message in a ladder: among those that belong together and are shown so, as those of a call.

    `ladder`: which one; `first`: it may begin with this message.
    """

    @property
    def ladder(self) -> bytes: ...

    @property
    def first(self) -> bool: ...

    def row(self, data: bytes, edits: Sequence[Edit]) -> dict[str, Any]:
        """What is told of the message `data`, as JSON has it; without secrets."""
        ...


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send `data`, the next bytes that came and were not delivered, to the side `to`: as they came but for `edits` (in
    ascending order, not overlapping)."""

    to: Side
    data: bytes
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Say:
    """Send `data`, words of the module's own, to the side `to`, behind what was delivered to it; `reason` as
    "ftp.nat64". With `mode = "observe"` it is only logged."""

    to: Side
    data: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class CloseWrite:
    """Nothing more will be delivered to `to`, as the other side has sent its end (`Closed`): pass that on."""

    to: Side


@dataclass(frozen=True, slots=True)
class OpenPinhole:
    """Let `peer` (an address; None: anyone) reach `target`, an endpoint of the flow's own client, from outside.

    On the flow of a published server: of its client or of its server; whichever it is, the other side is told.

    One connection may come through, within `ttl` seconds. Answered by `Opened` or `Refused`.
    """

    ref: int
    target: Endpoint
    peer: str | None
    transport: str
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class OpenOutbound:
    """Let the flow's own client connect to `target` outside, once within `ttl` seconds, whatever the router's FORWARD
    policy is. Nothing is translated. Answered by `Opened` (with `target` as `public`) or `Refused`."""

    ref: int
    target: Endpoint
    transport: str
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class OpenConversation:
    """Give `target`, a socket of the flow's own inside client, one public port for whomever it talks to (UDP).

    What `target` sends leaves from the public port; `peers` (addresses, at most 8; (): nobody yet; None: anybody) may
    send to it from any port of theirs. `second`: the client's port behind a second public port, the next one (RTP and
    RTCP; the first is even then). Open for `ttl` seconds from now (at most 7,200), however much it is used.
    Answered by `Opened` (the first public port) or `Refused`.
    """

    ref: int
    target: Endpoint
    second: int | None
    peers: tuple[str, ...] | None
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateConversation:
    """`peers` and `ttl` (seconds from now) of the conversation `ref` are these from now on. Whoever is no peer any more
    is cut off at once. `ttl` None: it ends when it would have ended. Not answered, but by `Refused` if the conversation
    is not open any more.

    What the same answer delivers behind it goes when whoever is a peer now can send: nobody is told of a peer before
    that peer is let in.
    """

    ref: int
    peers: tuple[str, ...] | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class FindSocket:
    """Ask for the public endpoint of `target`, a UDP socket of the flow's own inside client that another module, in
    whichever process, has opened a conversation for. Nothing is opened. Answered by `Opened`, or by `Refused` where
    there is none."""

    ref: int
    target: Endpoint


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Connect to `client`, an endpoint of the flow's own client, and to `server`, one of its server's, and relay
    between them. Not answered: a side that is not connected to sees that itself."""

    client: Endpoint
    server: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class OpenMeeting:
    """Let the flow's server connect to a public port, its client to an inner one, each once within `ttl` seconds, and
    relay between them. Answered by `Opened` (with `inner`) or `Refused`."""

    ref: int
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class AskTransfer:
    """Ask whether the flow's server may exchange files with `other`, an endpoint of neither side. Nothing is opened.
    Answered by `Opened` (with `other` as `public`) or `Refused`."""

    ref: int
    other: Endpoint


@dataclass(frozen=True, slots=True)
class ClosePinhole:
    """Close the pinhole `ref`, if it is still open. Connections that it admitted live on; a conversation is cut off."""

    ref: int


@dataclass(frozen=True, slots=True)
class Bypass:
    """Relay everything from now on unread; the module is not called again, unless it outlives its flow."""


@dataclass(frozen=True, slots=True)
class Revoke:
    """This flow may never again open a pinhole; `rule` names why. Open ones that are unused are closed; conversations
    of a module that outlives its flow stay. When the commands with it are done, everything from then on is relayed
    unread, and the module is not called again, unless it outlives its flow."""

    rule: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator may want to see. `code` is stable ("ftp.tls"), `detail` is text without secrets."""

    code: str
    detail: str


Command = (
    Deliver
    | Say
    | CloseWrite
    | OpenPinhole
    | OpenOutbound
    | OpenConversation
    | UpdateConversation
    | FindSocket
    | OpenRelay
    | OpenMeeting
    | AskTransfer
    | ClosePinhole
    | Bypass
    | Revoke
    | Note
)

# --- modules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FlowContext:
    """What a module is told of its flow at the start.

    `client`: the client's own endpoint on this flow, as the client knows it. `server`: the server's, as dialled.
    `inside`: which of them is behind this router; the server, if it is published (`[[publish]]`).
    `options`: an instance of the module's `Options`; None: its defaults.
    `public`: whom the server sees as the client, the connection's own endpoint towards it; None: not known.
    `transfers`: whether `AskTransfer` may be permitted at all.
    """

    client: Endpoint
    server: Endpoint
    inside: Side = Side.CLIENT
    options: object | None = None
    public: Endpoint | None = None
    transfers: bool = False


class AlgModule(Protocol):
    """A protocol module: one instance a flow, made as `Module(context)`.

    It may raise, hang or hold back too much: then its flow is relayed unread, with every byte, and opens nothing more.

    A class says what it wants by attributes; `alg.registry.Traits` has the defaults:

    `api`: the version of this interface that it is written for, 1. `kinds`: the kinds of pinholes that it may ask for,
    as "once" and "conversation". `Options`: its own keys in `[alg.NAME]`, as a frozen
    dataclass: a field a key, each with a default, of a type that TOML has. Unknown keys and wrong types are
    configuration errors; `Options` itself may raise ValueError("KEY: what is wrong"). `look_every`: seconds between two
    events `Activity`. `shown`: whether `algate trace` may show its messages; `conceal`, if there is
    one, gives what is shown of the bytes of one: as many bytes, without what is secret. `most_held`: bytes of a
    direction that it may hold back. `share`: of a processor, that one flow may cost on average. `outlives`: whether it
    is an `OutlivingModule`.
    """

    def __init__(self, context: FlowContext) -> None: ...

    def handle(self, event: Event) -> Sequence[Command]:
        """Take one event; answer with commands, to be done in this order. Does not block."""
        ...

    def deadline(self) -> float | None:
        """When a `Tick` is wanted, or None."""
        ...


class OutlivingModule(AlgModule, Protocol):
    """One whose conversations need not end with its flow, nor when its flow is relayed unread.

    From then on it is told `Activity`, `Refused` and `Tick`, and of its answers `UpdateConversation`, `ClosePinhole`
    and `Note` are done. It ends, with all that is open, when it does not live on any more.
    """

    def lives_on(self) -> bool:
        """Whether something of it is in use that others have been told of."""
        ...


def apply_edits(data: bytes, edits: Sequence[Edit]) -> bytes:
    """`data` with `edits` applied. ValueError where edits overlap, are out of order or out of range."""
    if not edits:
        return data
    out: list[bytes] = []
    at = 0
    for edit in edits:
        if not at <= edit.start <= edit.end <= len(data):
            raise ValueError(f"edit {edit.start}:{edit.end} does not fit after {at} in {len(data)} bytes")
        out += (data[at : edit.start], edit.replacement)
        at = edit.end
    out.append(data[at:])
    return b"".join(out)

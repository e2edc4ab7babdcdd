"""The interface between a protocol module of streams and its driver: events go in, commands come out.

A module is pure. The driver (`gateway/driver/stream.py`) tells it what happened (`Event`), with the time as an
argument; the module answers with what is to be done (`Command`), and the driver does it. Times are seconds of a
monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, get_args

from alg.address import Endpoint

API = (1, 0)
"""Version of this interface, (major, minor). A module names the major number as its `api`, and works with every minor
number."""


class Side(StrEnum):
    """An end of a flow. The client opened the flow, the server accepted it."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class Mode(StrEnum):
    """What a module may do: edit the payload, only report what it would edit, or nothing."""

    REWRITE = "rewrite"
    OBSERVE = "observe"
    OFF = "off"


PinholeKind = Literal["once", "anybody", "conversation", "exchange", "mapping", "gre", "read"]
PINHOLE_KINDS: tuple[str, ...] = get_args(PinholeKind)
"""The kinds of pinholes that a module's class may name in its `kinds`. It asks for them by: `OpenPinhole` and
`OpenOutbound` (once), `OpenPinhole` without a peer (anybody), `OpenConversation`, `OpenExchange`, `OpenMapping`,
`OpenGre`, and `OpenPinhole` with `read`."""


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """`side` sent `data`, which is never empty."""

    side: Side
    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Closed:
    """`side` has ended its stream. What it sent before that came as `Received`."""

    side: Side
    now: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The pinhole `ref` is open. `public` is the endpoint that may be advertised; for an outbound pinhole it is the
    target.

    `inner`: for a meeting (`OpenMeeting`), the endpoint to which the client has to connect; for an exchange, the
    endpoint where the server finds the client.
    """

    ref: int
    public: Endpoint
    now: float
    inner: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The pinhole `ref` was not opened. `rule` names the reason."""

    ref: int
    rule: str
    now: float


@dataclass(frozen=True, slots=True)
class Activity:
    """The conversation `ref` has carried `packets` packets since it was opened, in both ports together.

    A driver that can count sends this every `look_every` seconds, if the module's class declares that.
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
    """Replace `data[start:end]` of a `Deliver` by `replacement`. `reason` is a stable word, such as "ftp.port"."""

    start: int
    end: int
    replacement: bytes
    reason: str


class Rung(Protocol):
    """The place of a message in a ladder: a sequence of messages that are shown together, such as those of one call.

    `ladder` identifies the sequence. `first`: this message may begin it.
    """

    @property
    def ladder(self) -> bytes: ...

    @property
    def first(self) -> bool: ...

    def row(self, data: bytes, edits: Sequence[Edit]) -> dict[str, Any]:
        """Describe the message `data` for a trace, as a JSON object without secrets."""
        ...


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send `data` to the side `to`: the next bytes that came and were not delivered yet, unchanged but for `edits` (in
    ascending order, not overlapping)."""

    to: Side
    data: bytes
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Say:
    """Send `data`, bytes of the module's own, to the side `to`, after what was delivered to it. `reason` is a stable
    word, such as "ftp.nat64". With `mode = "observe"` it is only logged."""

    to: Side
    data: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class CloseWrite:
    """Pass on the end of the stream to `to`: the other side has sent its end (`Closed`), and nothing more will be
    delivered."""

    to: Side


@dataclass(frozen=True, slots=True)
class OpenPinhole:
    """Let `peer` (an address; None: any host, but only the first one) connect from outside to `target`, an endpoint of
    the flow's own client. Kind "once", or "anybody" without a peer.

    For a published server `target` may belong to either end of the flow; the public endpoint is then advertised to the
    opposite end.

    One connection may come through, within `ttl` seconds. Answered by `Opened` or `Refused`.

    `read` (TCP, and not on the flow of a published server): the connection is a flow that another instance of the
    module reads, as its `FlowContext.opened_as` says; its client is the flow's own client.
    """

    ref: int
    target: Endpoint
    peer: str | None
    transport: str
    ttl: float
    reason: str
    read: bool = False


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
    """Give `target`, a UDP socket of the flow's own inside client, one public port, whatever host it exchanges
    datagrams with.

    What `target` sends leaves from the public port. `peers` (addresses, at most 8; (): nobody yet; None: all hosts) may
    send to it from any port of theirs. `second`: the client's port behind a second public port, which is the next
    number (RTP and RTCP; the first one is even then). Open for `ttl` seconds from now (at most 7,200), however much it
    is used. Answered by `Opened` (with the first public port) or `Refused`.
    """

    ref: int
    target: Endpoint
    second: int | None
    peers: tuple[str, ...] | None
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateConversation:
    """Change `peers` and `ttl` (seconds from now) of the conversation `ref`. Hosts that are no peers any more are cut
    off at once. `ttl` None: the end of the conversation does not change. Answered only by `Refused`, if the
    conversation is not open any more; a change that is not permitted leaves it as it was.

    What the same answer delivers after this command is sent when the new peers are let in, so that no side hears of a
    peer before that peer can send.
    """

    ref: int
    peers: tuple[str, ...] | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class OpenMapping:
    """Give `target`, a socket of the flow's own inside client, a public port for any number of connections and
    datagrams, for `ttl` seconds from now (at most 7,200; `UpdateMapping` prolongs it).

    `transports`: "tcp", "udp" or both, which have one number then. `peers`: who may come, as prefixes
    ("198.51.100.0/24", at most 8); None: anybody. `port`: the public port that is wished for, if it is free; `exact`:
    that one or none. A socket that has a public port already gets that one. What the socket sends leaves from the
    public port too. Answered by `Opened` or `Refused` ("wish": that port cannot be had).
    """

    ref: int
    target: Endpoint
    transports: tuple[str, ...]
    peers: tuple[str, ...] | None
    ttl: float
    reason: str
    port: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class UpdateMapping:
    """Change `peers` and `ttl` (seconds from now; None: as it was) of the mapping `ref`. TCP connections of former
    peers go on; their datagrams are stopped at once. Answered only by `Refused`, if the mapping is not open any
    more."""

    ref: int
    peers: tuple[str, ...] | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class OpenExchange:
    """On the flow of a published server: let the socket `client` of its client outside and the server inside exchange
    datagrams (UDP), each of which knows the other one by an address of this host.

    `server`: the server's socket; None: not known yet, `UpdateExchange` names it. `client_second`, `server_second`: the
    ports of RTCP beside them. Open for `ttl` seconds (at most 7,200). Answered by `Opened`: `public` is where the
    client finds the server, `inner` is where the server finds the client (of pairs the first port, which is even); or
    by `Refused`.
    """

    ref: int
    client: Endpoint
    server: Endpoint | None
    ttl: float
    reason: str
    client_second: int | None = None
    server_second: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateExchange:
    """The server's socket of the exchange `ref`, and the time that it has from now on in seconds (None: as it was).
    As with `UpdateConversation`, what the same answer delivers behind it goes when it is done."""

    ref: int
    server: Endpoint
    server_second: int | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class OpenGre:
    """Let the flow's server send the packets of one call of PPTP (GRE version 1, RFC 2637, 4.1; IPv4) to the flow's own
    inside client, which has chosen the call ID `call_id` for them (0 to 65535).

    Open for `ttl` seconds from now (at most 7,200; `UpdateGre` prolongs it). Answered by `Opened`, whose `public` has
    the call ID that the server has to use in place of a port: `call_id`, unless a call of another client has it; or by
    `Refused`.
    """

    ref: int
    call_id: int
    ttl: float
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateGre:
    """The server of the call `ref` has chosen the call ID `server_call_id`: packets of the client with it may leave,
    from the address that the server knows. `ttl`: seconds from now (None: as it was). As with `UpdateConversation`,
    what the same answer delivers behind it goes when it is done."""

    ref: int
    server_call_id: int
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out what listens at `target`, a TCP port of the flow's own client: connect to it from this host, send `send`
    and read. Answered by `Opened` (with `target` as `public`) if what comes back begins with `expect` (b"": it accepts
    the connection), else by `Refused` ("probe"). It takes five seconds at most, and nothing is opened. At most 512
    bytes each. `unchecked`: from where to where `expect` may be any bytes.
    """

    ref: int
    target: Endpoint
    send: bytes
    expect: bytes
    unchecked: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class FindSocket:
    """Ask for the public endpoint of `target`, a UDP socket of the flow's own inside client for which another module,
    in any process, has opened a conversation. Nothing is opened. Answered by `Opened`, or by `Refused` if there is
    none."""

    ref: int
    target: Endpoint


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Connect to `client`, an endpoint of the flow's own client, and to `server`, an endpoint of its server, and relay
    between them. Not answered: a side to which no connection comes notices that itself."""

    client: Endpoint
    server: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class OpenMeeting:
    """Let the flow's server connect to a public port and its client to an inner port, each once within `ttl` seconds,
    and relay between them. Answered by `Opened` (with `inner`) or `Refused`."""

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
    """Close the pinhole `ref`, if it is still open. Connections that it admitted go on; a conversation is cut off."""

    ref: int


@dataclass(frozen=True, slots=True)
class Bypass:
    """Relay the flow unread from now on. The module is not called again, unless it outlives its flow."""


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take away this flow's right to open pinholes, for good; `rule` names the reason. Open pinholes that are unused
    are closed; conversations of a module that outlives its flow stay. When the other commands of the same answer are
    done, the flow is relayed unread, and the module is not called again, unless it outlives its flow."""

    rule: str


@dataclass(frozen=True, slots=True)
class Note:
    """Report something that an operator may want to know. `code` is stable ("ftp.tls"), `detail` is text without
    secrets. `again`: it was said a moment ago, so this one is only counted. `unread`: it is about a message that passes
    because it cannot be read."""

    code: str
    detail: str
    again: bool = False
    unread: bool = False


Command = (
    Deliver
    | Say
    | CloseWrite
    | OpenPinhole
    | OpenOutbound
    | OpenConversation
    | UpdateConversation
    | OpenMapping
    | UpdateMapping
    | OpenExchange
    | UpdateExchange
    | OpenGre
    | UpdateGre
    | Probe
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


class Board(Protocol):
    """A board that the processes share, for short words that a module leaves for its like in another process."""

    def pin(self, word: str, seconds: float) -> None:
        """Leave a word for this many seconds, if there is room. Many later words may displace it."""
        ...

    def pinned(self, word: str) -> bool:
        """Whether some process has left this word, and its time is not over."""
        ...


@dataclass(frozen=True, slots=True)
class FlowContext:
    """What a module is told about its flow when it is made.

    `client`: the client's own endpoint on this flow, as the client knows it. `server`: the server's endpoint, as
    dialled. `inside`: which of the two is behind this router; that is the server if it is published (`[[publish]]`).
    `options`: an instance of the module's `Options`; None: its defaults. `public`: the endpoint that the server sees as
    the client; None: not known. `transfers`: whether `AskTransfer` may be permitted at all. `shared`: what all modules
    of this class in a process have together, for those whose flows belong together; it begins empty, and lasts.
    `board`: what they have together with those of other processes; None: there is none. `published`: where a client
    outside finds the server, if that is published. `opened_as`: the reason of the pinhole with `read` through which the
    flow has come; None: it goes to one of the module's ports.
    """

    client: Endpoint
    server: Endpoint
    inside: Side = Side.CLIENT
    options: object | None = None
    public: Endpoint | None = None
    transfers: bool = False
    shared: dict[str, Any] = field(default_factory=dict, compare=False)
    board: Board | None = field(default=None, compare=False)
    published: Endpoint | None = None
    opened_as: str | None = None


class AlgModule(Protocol):
    """A protocol module of streams, with one instance for each flow, made as `Module(context)`.

    If it raises, hangs or holds back too much, its flow is relayed unread, with every byte, and opens nothing more.

    A class declares what it wants by attributes; `alg.registry.Traits` has the defaults:

    - `api`: the version of this interface that it is written for, 1.
    - `kinds`: the kinds of pinholes that it may ask for, of `PINHOLE_KINDS`; others are refused.
    - `Options`: its own keys in `[alg.NAME]`, as a frozen dataclass with a field for each key. Each has a default and a
      type that TOML has. Unknown keys and wrong types are configuration errors; `Options` itself may raise
      ValueError("KEY: what is wrong").
    - `look_every`: seconds between two `Activity` events.
    - `shown`: whether `algate trace` may show its messages. `conceal`, if there is one, returns what is shown of the
      bytes of a message: as many bytes, without what is secret.
    - `default_ports`, `default_mode`: the ports of its servers, and its mode, where its section of the configuration
      does not set them. A module of another package is used only if it has a section.
    - `most_held`: number of bytes of a direction that it may hold back.
    - `share`: share of a processor that one flow may use on average.
    - `outlives`: whether it is an `OutlivingModule`.
    """

    def __init__(self, context: FlowContext) -> None: ...

    def handle(self, event: Event) -> Sequence[Command]:
        """Handle one event, and return commands, which are carried out in this order. Must not block."""
        ...

    def deadline(self) -> float | None:
        """Return when a `Tick` is wanted, or None."""
        ...


class OutlivingModule(AlgModule, Protocol):
    """A module whose conversations may go on after its flow has ended, or is relayed unread.

    From then on it receives `Activity`, `Refused` and `Tick`; of its answers `UpdateConversation`, `UpdateMapping`,
    `ClosePinhole` and `Note` are carried out. It ends, with all that is open, when `lives_on` returns False.
    """

    def lives_on(self) -> bool:
        """Whether something is still in use that was advertised to others."""
        ...


def apply_edits(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Return `data` with `edits` applied. Raises ValueError where edits overlap, are out of order or out of range."""
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

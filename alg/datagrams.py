"""What a datagram module and its driver say to each other, beside the words of `alg.api`.

Datagrams are no flow: one module sees every datagram of its ports between inside and outside, as it stands in the
middle of the router. The client's address is always its own (private) one, the server's always the real one: outbound
datagrams are shown before their source is translated, inbound ones after their destination was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

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

# --- events ---------------------------------------------------------------------------------------------------------


class Datagram(NamedTuple):
    """`side` sent `data` (the UDP payload, whole). `client` is the inside socket, `server` the outside one.

    `packet`: the driver's number for it, not in use for another datagram that waits. Answered by exactly one `Release`
    of that number, in the same call or in a later one. A driver waits 2.5 seconds for it; then the datagram goes as it
    came.
    """

    packet: int
    side: Side
    client: Endpoint
    server: Endpoint
    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The public address of the conversation `ref` is this router's no more. The module closes it and opens it anew:
    what the client says next names the new address."""

    ref: int
    now: float


DatagramEvent = Datagram | Activity | Moved | Opened | Refused | Tick

# --- commands -------------------------------------------------------------------------------------------------------


class Release(NamedTuple):
    """Let the datagram go, with `edits` to its payload; no edits: untouched.

    It goes when every `UpdateConversation` that stands before it in the same answer and lets somebody in has been
    carried out: nobody is told of a peer before that peer is let in. In mode "observe" the driver leaves the edits out.
    """

    packet: int
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = None


@dataclass(frozen=True, slots=True)
class StandDown:
    """What `client` and the address `server` say to each other is edited no more, or only in part; `rule` says why.

    The driver goes on showing the module these datagrams: it remembers, and may begin again.
    """

    client: Endpoint
    server: str
    rule: str


@dataclass(frozen=True, slots=True)
class RevokeConversation:
    """Nothing that `client` and the address `server` say opens anything from now on; `rule` says why.

    As with `StandDown` the module remembers it itself, and for how long. What is open stays.
    """

    client: Endpoint
    server: str
    rule: str


DatagramCommand = Release | OpenConversation | UpdateConversation | ClosePinhole | StandDown | RevokeConversation | Note

# --- what outlives a process ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """The state of `key` is `record` from now on, in the module's own encoding; None: it is no more.

    `ref`: the open conversation that the record describes, if it describes one. The driver stores that one's pinhole
    with it, and gives a record back only together with its pinhole.
    """

    key: str
    ref: int | None
    record: bytes | None


# --- what is shown to people ----------------------------------------------------------------------------------------

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a driver knows that a row may show. `leases`: the pinholes' ids by the number of their conversation;
    `traffic`: packets in and out by the same, where that was asked for; `now` on the clock of the events."""

    leases: Mapping[int, str]
    traffic: Mapping[int, tuple[int, int]]
    now: float


class Kicked(NamedTuple):
    """What an operator has ended: `row` is told, the conversations `refs` are closed."""

    row: Row
    refs: tuple[int, ...]


# --- modules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatagramContext:
    """What a datagram module is told at the start.

    `options`: an instance of the module's `Options`; None: its defaults. `recorded`: whether `journal` will be asked.
    `fixed`: a client's socket and its public one, which is there for as long as the module (an association of SOCKS):
    the module serves nobody else, and whatever port the client names, it is reached there. `published`: inside sockets
    that have a public endpoint whether anybody opens it or not.
    """

    options: object | None = None
    recorded: bool = False
    fixed: tuple[Endpoint, Endpoint] | None = None
    published: Mapping[Endpoint, Endpoint] = field(default_factory=dict)


class DatagramModule(Protocol):
    """A module for datagrams, made as `Module(context)`: one for all inside clients of a process, or one for each
    socket of an association of SOCKS. Its class is found by the entry points of the group "algate.datagram".

    Declared in the class, each with a default: `api` (1), `Options` (as of `AlgModule`), `look_every` (seconds between
    two `Activity`; None: never), `recorded` (whether it has `journal` and `restore`), `shown` (whether its messages may
    be traced), `tables` (the names of the tables that `table` knows), `kinds` (the kinds of pinholes that it asks for:
    "conversation").
    """

    def __init__(self, context: DatagramContext) -> None: ...

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        """Take one event; answer with commands, to be done in this order. Never raises, never blocks."""
        ...

    def deadline(self) -> float | None:
        """When a `Tick` is wanted, or None."""
        ...


class RecordedModule(DatagramModule, Protocol):
    """One that outlives its process: another process goes on where it was."""

    def journal(self) -> Sequence[Entry]:
        """What has changed since this was asked last."""
        ...

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        """Begin with what another one's entries said, the latest of each key. Only before any event. What cannot be
        read is left out."""
        ...


class ShownModule(DatagramModule, Protocol):
    """One that has something to show."""

    def table(self, name: str, shown: Shown) -> list[Row]:
        """The rows of a table, as JSON has them."""
        ...

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """Metrics: the name and the values of the labels, and the value."""
        ...

    def counts(self) -> dict[str, int]:
        """Numbers since the start, for `algate status`."""
        ...

    def kick(self, name: str) -> list[Kicked]:
        """End what is called so."""
        ...

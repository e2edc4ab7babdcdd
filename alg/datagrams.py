"""The interface between a module of datagrams and its driver: the events and commands that `alg.api` does not have.

Datagrams belong to no flow. One module sees every datagram of its ports between inside and outside, as it is in the
middle of the router: the client's address is always its own (private) one, the server's always the real one. Outbound
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
    OpenMapping,
    Probe,
    Refused,
    Rung,
    Side,
    Tick,
    UpdateConversation,
    UpdateMapping,
)

# --- events ---------------------------------------------------------------------------------------------------------


class Datagram(NamedTuple):
    """`side` sent `data`, a whole UDP payload. `client` is the inside socket, `server` the outside one.

    `packet` is the driver's number for the datagram, unique among those that wait. The module answers with exactly one
    `Release` of that number, in the same call or in a later one. A driver waits 2.5 seconds for it, and then sends the
    datagram on as it came.
    """

    packet: int
    side: Side
    client: Endpoint
    server: Endpoint
    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The public address of the conversation `ref` is no longer one of this router's. The module closes the
    conversation and opens it again; the client's next message then names the new address."""

    ref: int
    now: float


DatagramEvent = Datagram | Activity | Moved | Opened | Refused | Tick

# --- commands -------------------------------------------------------------------------------------------------------


class Release(NamedTuple):
    """Send the datagram on, with `edits` to its payload; without edits it goes untouched.

    It is sent when every `UpdateConversation` before it in the same answer that lets a peer in has been carried out, so
    that no side hears of a peer before that peer can send. In mode "observe" the driver leaves the edits out.
    """

    packet: int
    edits: tuple[Edit, ...] = ()
    rung: Rung | None = None


@dataclass(frozen=True, slots=True)
class StandDown:
    """Report that messages between `client` and the address `server` are not edited any more, or only in part. `rule`
    is the reason.

    The driver goes on showing the module these datagrams; the module itself remembers, and may begin to edit again.
    """

    client: Endpoint
    server: str
    rule: str


@dataclass(frozen=True, slots=True)
class RevokeConversation:
    """Report that messages between `client` and the address `server` open no pinholes any more. `rule` is the reason.

    As with `StandDown` the module itself remembers that, and for how long. What is open stays open.
    """

    client: Endpoint
    server: str
    rule: str


DatagramCommand = (
    Release
    | OpenConversation
    | UpdateConversation
    | OpenMapping
    | UpdateMapping
    | Probe
    | ClosePinhole
    | StandDown
    | RevokeConversation
    | Note
)
"""`OpenMapping` and `Probe` are of the client of whichever datagram the module has been shown: `target` names it."""

# --- what outlives a process ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A journal entry: the state of `key` is `record`, in the module's own encoding; None: the key is deleted.

    `ref`: the open conversation that the record describes, if it describes one. The driver stores that conversation's
    pinhole with it, and gives a record back only together with its pinhole.
    """

    key: str
    ref: int | None
    record: bytes | None


# --- what is shown to people ----------------------------------------------------------------------------------------

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a driver knows that a row of a table may show. `leases`: the ids of pinholes, by the number of their
    conversation; `traffic`: packets in and out, by the same number, where they were asked for; `now`: the time on the
    clock of the events."""

    leases: Mapping[int, str]
    traffic: Mapping[int, tuple[int, int]]
    now: float


class Kicked(NamedTuple):
    """The result of a kick: `row` describes what an operator has ended; the conversations `refs` are closed."""

    row: Row
    refs: tuple[int, ...]


# --- modules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatagramContext:
    """What a datagram module is told when it is made.

    `options`: an instance of the module's `Options`; None: its defaults. `recorded`: whether `journal` will be called.
    `fixed`: for an association of SOCKS, the client's socket and its public socket, which exists as long as the module.
    The module then serves this client only, which is reached there whatever port it names. A conversation of that
    socket opens nothing: its peers may send to the public socket from then on, as long as the module exists.
    `published`: inside sockets that have a public endpoint without anybody opening one.
    """

    options: object | None = None
    recorded: bool = False
    fixed: tuple[Endpoint, Endpoint] | None = None
    published: Mapping[Endpoint, Endpoint] = field(default_factory=dict)


class DatagramModule(Protocol):
    """A module for datagrams, made as `Module(context)`: one for all inside clients of a process, or one for each
    socket of an association of SOCKS. Its class is found by the entry points of the group "algate.datagram".

    A class declares, each with a default: `api` (1), `Options` (as in `AlgModule`), `look_every` (seconds between two
    `Activity` events; None: none), `recorded` (whether it has `journal` and `restore`), `shown` (whether its messages
    may be traced), `read_inbound` (whether it is also shown what arrives at the public port of a socket that has
    spoken its protocol; otherwise only the kernel sees that), `tables` (the names of the tables that `table` knows),
    `gauges` (the metrics among its `samples` to which each instance adds its own, so that they count in associations
    too), `kinds` (the kinds of pinholes that it may ask for), `default_ports` and `default_mode` (all as in
    `AlgModule`; of a protocol that has both, the class of streams declares the last two).
    """

    def __init__(self, context: DatagramContext) -> None: ...

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        """Handle one event, and return commands, which are carried out in this order. Must neither raise nor block.
        An exception is logged, and what the client and the server say passes unread for a minute; a module that hangs
        three times within a minute is not called any more."""
        ...

    def deadline(self) -> float | None:
        """Return when a `Tick` is wanted, or None."""
        ...


class RecordedModule(DatagramModule, Protocol):
    """A module whose state outlives its process: the module of a new process goes on from its journal."""

    def journal(self) -> Sequence[Entry]:
        """Return what has changed since the last call."""
        ...

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        """Start with the entries of another module's journal, the latest one of each key. Called before any event.
        Entries that cannot be read are ignored."""
        ...


class ShownModule(DatagramModule, Protocol):
    """A module that has tables and metrics to show."""

    def table(self, name: str, shown: Shown) -> list[Row]:
        """Return the rows of a table, as JSON objects."""
        ...

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """Return values of algate's own metrics: the name with the values of the labels, and the value."""
        ...

    def counts(self) -> dict[str, int]:
        """Return counts since the start, for `algate status`."""
        ...

    def kick(self, name: str) -> list[Kicked]:
        """End what has this id, such as a call, and return what was ended."""
        ...

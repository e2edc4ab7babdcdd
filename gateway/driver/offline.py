"""Shows what the modules would do with the contents of a capture, without a network: `algate explain`.

Pinholes are granted at once, with ports counted up from the first one of `pinhole.ports`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alg.address import Endpoint, canonical
from alg.api import (
    AlgModule,
    AskTransfer,
    Bypass,
    Command,
    Deliver,
    Event,
    FindSocket,
    FlowContext,
    Mode,
    Note,
    OpenConversation,
    Opened,
    OpenExchange,
    OpenGre,
    OpenMapping,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    Probe,
    Received,
    Refused,
    Revoke,
    Rung,
    Side,
)
from alg.datagrams import DatagramContext, DatagramModule, RevokeConversation, StandDown
from alg.registry import traits_of
from gateway.driver.capture import Piece
from gateway.driver.datagrams import DatagramDriver, Placement, Said, Setting
from gateway.driver.outbox import HeldDatagram
from gateway.driver.readers import DatagramReader, StreamReader
from gateway.model.requests import Done, Lease, Network, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.observe.trace import Row, Trace, row

MOST_WAITING = 1024  # datagrams that a module holds; with a further one those of its way go as they are


class Rehearsal:
    """Takes pieces of a capture, and returns rows: messages ("data") as `algate trace` has them, and "event" rows.

    `pieces`: how many there were; `read`: how many of them a module was shown.
    """

    def __init__(
        self,
        streams: Mapping[int, StreamReader],
        datagrams: Mapping[int, DatagramReader],
        first_port: int,
        inside: Sequence[Network],
        public: str,
    ) -> None:
        """`streams`, `datagrams`: by the server's port. `first_port`: of pinholes. `public`: the router's address."""
        self._streams = streams
        self._datagrams = datagrams
        self._inside = tuple(inside)
        self._public = public
        self.pieces = self.read = 0
        self._port = itertools.count(first_port, 2)
        self._readings: dict[str, _Datagrams] = {}
        self._flows: dict[frozenset[Endpoint], _Flow | None] = {}

    def run(self, pieces: Iterable[Piece]) -> Iterator[Row]:
        """Yield the rows in the capture's order. A message appears when it would have been sent on."""
        for piece in pieces:
            self.pieces += 1
            yield from self._datagram(piece) if piece.transport == "udp" else self._stream(piece)

    @property
    def public(self) -> str:
        """The router's address outside."""
        return self._public

    def open(self, target: Endpoint, suggested: int | None = None) -> Endpoint:
        """Return the public endpoint for a target: with the suggested port, if there is one."""
        return Endpoint(self._public, suggested or next(self._port)) if ":" not in target.host else target

    def _is_inside(self, endpoint: Endpoint) -> bool:
        return any(canonical(endpoint.host) in network for network in self._inside)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def _datagram(self, piece: Piece) -> Iterator[Row]:
        known = next(
            (
                found
                for end in (piece.destination, piece.source)
                if (found := self._datagrams.get(end.port)) is not None
            ),
            None,
        )
        outward = self._is_inside(piece.source)
        if known is None or outward == self._is_inside(piece.destination):
            return
        self.read += 1
        name = known.kind.name
        reading = self._readings.get(name)
        if reading is None:
            module, _ = known.kind.make(DatagramContext(known.options))
            reading = self._readings[name] = _Datagrams(name, module, self)
        yield from reading.received(piece, outward)

    # --- streams ----------------------------------------------------------------------------------------------------

    def _stream(self, piece: Piece) -> Iterator[Row]:
        key = frozenset((piece.source, piece.destination))
        if key not in self._flows or piece.first:
            self._flows[key] = self._begin(piece)
        flow = self._flows[key]
        if flow is not None and piece.data:
            self.read += 1
            yield from flow.received(piece)

    def _begin(self, piece: Piece) -> _Flow | None:
        """Begin a flow, if a module reads it. Its beginning may be missing from the capture: the server is the end with
        the module's port."""
        client, server = piece.source, piece.destination
        if server.port not in self._streams and not piece.first:
            client, server = server, client
        reader = self._streams.get(server.port)
        if reader is None or not self._is_inside(client):
            return None
        context = FlowContext(client, server, Side.CLIENT, reader.options)
        return _Flow(reader.kind(context), client, server, self)


class _Datagrams:
    """A module of datagrams with its driver. This object is both the carrier and the backend of pinholes."""

    def __init__(self, name: str, module: DatagramModule, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._now = 0.0
        self._rows: list[Row] = []
        self._number = 0
        self._leases: dict[str, Lease] = {}
        setting = Setting(name, Mode.REWRITE, "explain", MOST_WAITING, {}, None, False)
        self._driver = DatagramDriver(module, setting, self, self, Trace(1), lambda: self._now, None)

    def received(self, piece: Piece, outward: bool) -> list[Row]:
        """Return the rows that a datagram causes."""
        self._now, self._rows = piece.time, []
        self._driver.tick()
        side, client, server = Side.CLIENT, piece.source, piece.destination
        if not outward:
            side, client, server = Side.SERVER, server, client
        self._driver.take(side, client, server, piece.data, None, (piece.source, piece.destination))
        return self._rows

    # --- as a carrier ---

    def send(self, held: HeldDatagram) -> None:
        ends = (held.client, held.server) if held.side is Side.CLIENT else (held.server, held.client)
        message = row(held.since, held.side, *ends, held.data, held.edits)
        self._rows.append({**message, "transport": "udp", "flow": "", "ladder": _ladder(held.rung)})

    def place(self, command: OpenConversation | OpenMapping) -> Placement:
        return Placement(command.target.host, PublicAddress(self._rehearsal.public, self._rehearsal.public))

    def said(self, command: Said) -> None:
        match command:
            case StandDown(client, host, rule) | RevokeConversation(client, host, rule):
                detail = f"{client.host} with {host}: {rule}"
                self._rows.append(_event(self._now, type(command).__name__, detail))
            case Note(code, detail, again=False):
                self._rows.append(_event(self._now, code, detail))

    def changed(self) -> None:
        pass

    def media_moved(self) -> None:
        pass

    def admitted(self, ref: int) -> None:
        pass

    # --- as a backend of pinholes ---

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Grant everything at once."""
        if isinstance(request, PinholeUpdate):
            done(self._leases[request.lease])
            return
        self._number += 1
        public = self._rehearsal.open(request.target, request.suggested)
        self._rows.append(_event(self._now, "pinhole", f"{public} -> {request.target} ({request.reason})"))
        lease = self._leases[str(self._number)] = Lease(
            id=str(self._number),
            flow=request.flow,
            reason=request.reason,
            client=request.client,
            direction="in",
            protocol="udp",
            public=public,
            target=request.target,
            peer=None,
            kind=request.kind,
            expires=0.0,
            backend="kernel",
            peers=request.peers,
            second=request.second,
        )
        done(lease)

    def close(self, lease: Lease) -> None:
        self._leases.pop(lease.id, None)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return {}


class _Flow:
    def __init__(self, module: AlgModule, client: Endpoint, server: Endpoint, rehearsal: Rehearsal) -> None:
        self._module = module
        self._traits = traits_of(module)
        self._ends = {Side.CLIENT: client, Side.SERVER: server}
        self._rehearsal = rehearsal
        self._bypassed = False

    def received(self, piece: Piece) -> Iterator[Row]:
        if self._bypassed:
            return
        side = Side.CLIENT if piece.source == self._ends[Side.CLIENT] else Side.SERVER
        events: deque[Event] = deque([Received(side, piece.data, piece.time)])
        while events and not self._bypassed:
            try:
                commands = tuple(self._module.handle(events.popleft()))
            except Exception as error:  # a module may fail in any way
                self._bypassed = True
                yield _event(piece.time, "alg.broken", f"{type(error).__name__}: {error}")
                return
            for command in commands:
                yield from self._do(command, piece.time, events)

    def _do(self, command: Command, when: float, events: deque[Event]) -> Iterator[Row]:
        match command:
            case Deliver(to, data, edits):
                conceal = self._traits.conceal
                shown = conceal(data) if conceal is not None else data
                message = row(when, to.other, self._ends[to.other], self._ends[to], shown, edits)
                yield {**message, "transport": "tcp", "flow": "", "ladder": _ladder(command.rung)}
            case Probe(ref, target):
                events.append(Opened(ref, target, when))
            case OpenPinhole(ref, target) | OpenConversation(ref, target) | OpenMapping(ref, target):
                public = self._rehearsal.open(target, command.port if isinstance(command, OpenMapping) else None)
                events.append(Opened(ref, public, when))
                yield _event(when, "pinhole", f"{public} -> {target} ({command.reason})")
            case OpenOutbound(ref, target):
                events.append(Opened(ref, target, when))
                yield _event(when, "pinhole", f"outward to {target} ({command.reason})")
            case OpenGre(ref, call_id):
                client = self._ends[Side.CLIENT].host
                events.append(Opened(ref, Endpoint(self._rehearsal.public, call_id), when))
                detail = f"{self._rehearsal.public} call {call_id} -> {client} call {call_id} ({command.reason})"
                yield _event(when, "pinhole", detail)
            case FindSocket(ref) | AskTransfer(ref) | OpenMeeting(ref) | OpenExchange(ref):
                events.append(Refused(ref, "explain", when))  # nobody is there who could be asked
            case Revoke(rule):
                yield _event(when, "revoke", rule)
            case Note(code, detail, again=False):
                yield _event(when, code, detail)
            case Bypass():
                self._bypassed = True
                yield _event(when, "bypass", "relayed unread from here on")
            case _:
                pass


def _ladder(rung: Rung | None) -> str | None:
    return rung.ladder.decode("latin-1") if rung is not None else None


def _event(when: float, event: str, detail: str) -> dict[str, Any]:
    return {"time": when, "event": event, "detail": detail}

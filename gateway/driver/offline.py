"""What the modules would do with what a capture holds, without a network: `algate explain`.

Pinholes are granted at once, with ports counted up from the first one of `pinhole.ports`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from alg.address import Endpoint, canonical
from alg.api import (
    AlgModule,
    Bypass,
    Command,
    Deliver,
    Event,
    FlowContext,
    Note,
    OpenConversation,
    Opened,
    OpenOutbound,
    OpenPinhole,
    Received,
    Revoke,
    Rung,
    Side,
)
from alg.datagrams import (
    Datagram,
    DatagramContext,
    DatagramEvent,
    DatagramModule,
    Release,
    RevokeConversation,
    StandDown,
)
from alg.registry import datagram_modules, modules, traits_of
from gateway.config.schema import Config
from gateway.driver.capture import Piece
from gateway.model.requests import Network
from gateway.observe.trace import Row, row


class Rehearsal:
    """Takes pieces of a capture, gives rows: messages ("data") as `algate trace` has them, and "event" rows.

    `pieces`: how many there were; `read`: how many of them a module was shown.
    """

    def __init__(self, config: Config, inside: Sequence[Network], public: str) -> None:
        self._config = config
        self._inside = tuple(inside)
        self._public = public
        self.pieces = self.read = 0
        self._port = itertools.count(config.pinhole_ports[0], 2)
        self._modules = modules()
        self._datagram_modules: dict[str, DatagramModule] = {}
        self._waiting: dict[int, Piece] = {}
        self._numbers = itertools.count(1)
        self._flows: dict[frozenset[Endpoint], _Flow | None] = {}

    def run(self, pieces: Iterable[Piece]) -> Iterator[Row]:
        """The rows, in the capture's order; a message appears when it would have been sent on."""
        for piece in pieces:
            self.pieces += 1
            yield from self._datagram(piece) if piece.transport == "udp" else self._stream(piece)

    def open(self, target: Endpoint) -> Endpoint:
        """The public endpoint that a target gets."""
        return Endpoint(self._public, next(self._port)) if ":" not in target.host else target

    def _is_inside(self, endpoint: Endpoint) -> bool:
        return any(canonical(endpoint.host) in network for network in self._inside)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def _datagram(self, piece: Piece) -> Iterator[Row]:
        known = next(
            (
                found
                for end in (piece.destination, piece.source)
                if (found := self._config.module_of(end.port, "udp")) is not None
            ),
            None,
        )
        outward = self._is_inside(piece.source)
        if known is None or outward == self._is_inside(piece.destination):
            return
        name, section = known
        self.read += 1
        module = self._datagram_modules.get(name)
        if module is None:
            kind = datagram_modules()[name]
            options = msgspec.convert(section.options, kind.options) if kind.options is not None else None
            module, _ = kind.make(DatagramContext(options))
            self._datagram_modules[name] = module
        side, client, server = Side.CLIENT, piece.source, piece.destination
        if not outward:
            side, client, server = Side.SERVER, server, client
        number = next(self._numbers)
        self._waiting[number] = piece
        events: deque[DatagramEvent] = deque([Datagram(number, side, client, server, piece.data, piece.time)])
        while events:
            for command in module.handle(events.popleft()):
                match command:
                    case Release(which, edits, rung):
                        sent = self._waiting.pop(which)
                        who = Side.CLIENT if self._is_inside(sent.source) else Side.SERVER
                        message = row(sent.time, who, sent.source, sent.destination, sent.data, edits)
                        yield {**message, "transport": "udp", "flow": "", "ladder": _ladder(rung)}
                    case OpenConversation(ref, target):
                        public = self.open(target)
                        events.append(Opened(ref, public, piece.time))
                        yield _event(piece.time, "pinhole", f"{public} -> {target} ({command.reason})")
                    case StandDown(_, host, rule) | RevokeConversation(_, host, rule):
                        yield _event(piece.time, type(command).__name__, f"{client.host} with {host}: {rule}")
                    case Note(code, detail):
                        yield _event(piece.time, code, detail)
                    case _:
                        pass

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
        """The flow, if a module is responsible. Its beginning may be missing: the server has the module's port."""
        client, server = piece.source, piece.destination
        if self._config.module_of(server.port) is None and not piece.first:
            client, server = server, client
        found = self._config.module_of(server.port)
        if found is None or not self._is_inside(client):
            return None
        module = self._modules[found[0]]
        kind = getattr(module, "Options", None)
        options = msgspec.convert(found[1].options, kind) if kind is not None else None
        return _Flow(module(FlowContext(client, server, Side.CLIENT, options)), client, server, self)


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
            for command in self._module.handle(events.popleft()):
                yield from self._do(command, piece.time, events)

    def _do(self, command: Command, when: float, events: deque[Event]) -> Iterator[Row]:
        match command:
            case Deliver(to, data, edits):
                conceal = self._traits.conceal
                shown = conceal(data) if conceal is not None else data
                message = row(when, to.other, self._ends[to.other], self._ends[to], shown, edits)
                yield {**message, "transport": "tcp", "flow": "", "ladder": _ladder(command.rung)}
            case OpenPinhole(ref, target) | OpenConversation(ref, target):
                public = self._rehearsal.open(target)
                events.append(Opened(ref, public, when))
                yield _event(when, "pinhole", f"{public} -> {target} ({command.reason})")
            case OpenOutbound(ref, target):
                events.append(Opened(ref, target, when))
                yield _event(when, "pinhole", f"outward to {target} ({command.reason})")
            case Revoke(rule):
                yield _event(when, "revoke", rule)
            case Note(code, detail):
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

"""Datagrams of a UDP association that a protocol module reads: the driver of an engine whose public endpoint is fixed.

The association's socket towards the outside is the client's public endpoint, and is there without anybody opening it;
what the engine opens are conversations for media, which are the kernel's and do not go through the association (0071).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import gevent
import structlog
from gevent.event import Event as Wakeup

from alg.address import Endpoint, canonical
from alg.api import (
    Activity,
    ClosePinhole,
    Edit,
    Mode,
    Note,
    OpenConversation,
    Opened,
    Refused,
    Rung,
    Side,
    Tick,
    UpdateConversation,
    apply_edits,
)
from alg.sip.events import Datagram, Release, RevokeConversation, SipCommand, SipEvent, StandDown
from alg.sip.rows import CallRow
from gateway.driver.conversations import Conversations
from gateway.driver.ordering import Held, InOrder
from gateway.flow.table import Flow
from gateway.front.udp.routes import Host, Outside, bound
from gateway.front.udp.wire import MAX_ADDRESS_HEADER, MAX_DATA
from gateway.observe.counters import count
from gateway.observe.trace import PASSED
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

MOST_WAITING = 256  # datagrams of one direction between two sockets, the first of which waits; then all go as they are
LOOKS = 3  # looks in the time that ends an idle association
LONGEST = MAX_DATA - MAX_ADDRESS_HEADER  # bytes of a datagram that can be sent to either side


class Engine(Protocol):
    """What decides about datagrams (`alg.sip.session.SipEngine`)."""

    def handle(self, event: SipEvent) -> Sequence[SipCommand]: ...

    def deadline(self) -> float | None: ...

    def calls(self) -> list[CallRow]: ...


class MessageReader(NamedTuple):
    """What is read, and how. `ports`: of targets; `engine`: makes one for a client's socket and its public one;
    `look_every`: seconds between two looks at the kernel's counters, at most."""

    ports: frozenset[int]
    mode: Mode
    pinholes: ConversationBackend
    engine: Callable[[Endpoint, Endpoint], Engine]
    look_every: float


Send = Callable[[Side, Host, bytes], None]


class _HeldDatagram(Held):
    """A datagram that has not gone yet."""

    __slots__ = ("data", "side", "target")

    def __init__(self, side: Side, target: Host, data: bytes) -> None:
        super().__init__((side, target), 0.0)
        self.side = side
        self.target = target
        self.data = data


class Messages:
    """What a client says through one socket of its association, from its making to `close`.

    `peers`: the targets whose datagrams are read here, with the headers of their answers. `send(side, target, data)`
    passes a datagram of `side` on. `alive` is called when media have moved: they are a sign of life too.
    """

    def __init__(
        self,
        reader: MessageReader,
        flow: Flow,
        client: Endpoint,
        outside: Outside,
        idle_timeout: float,
        send: Send,
        alive: Callable[[], None],
    ) -> None:
        """`client`: the source of the client's datagrams. `outside`: where they leave."""
        public = Endpoint(outside.public.advertised, outside.lease.public.port)
        self.peers: dict[Host, bytes] = {}
        self.conversations = Conversations(reader.pinholes, reader.mode, flow.id, self._told)
        self._engine = reader.engine(client, public)
        self._mode = reader.mode
        self._flow = flow
        self._client = client
        self._public = outside.public
        self._send = send
        self._alive = alive
        self._every = min(reader.look_every, idle_timeout / LOOKS)
        self._next_look = 0.0
        self._counted: dict[int, tuple[int, int]] = {}
        self._revoked: set[str] = set()
        self._waiting: InOrder[_HeldDatagram] = InOrder()
        self._changed = Wakeup()
        self._timer = gevent.spawn(self._keep_time)
        self._closed = False

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return self._engine.calls()

    def admit(self, target: Host, header: bytes) -> bool:
        """Read what is said with `target` from now on, if it is to be read at all."""
        if target[0] in self._revoked and not any(self._waiting.of_way((side, target)) for side in Side):
            self.peers.pop(target, None)
            return False
        self.peers.pop(target, None)  # behind the others, for it is in use
        self.peers[target] = header
        bound(self.peers)
        return True

    def close(self) -> None:
        """Close all that was opened; nothing is sent any more."""
        self._closed = True
        self._timer.kill(block=False)
        self._waiting.clear()
        self.conversations.close_all()

    # --- datagrams --------------------------------------------------------------------------------------------------

    def take(self, side: Side, target: Host, data: bytes) -> None:
        """A datagram of `side`: it goes on at once, or when what it waits for has come."""
        before = self._waiting.of_way((side, target))
        if len(before) >= MOST_WAITING:
            for one in before:
                self._release(one.number, ())
        held = self._waiting.add(_HeldDatagram(side, target, data))
        server = Endpoint(str(canonical(target[0].partition("%")[0])), target[1])
        self._feed(Datagram(held.number, side, self._client, server, data, time.monotonic()))
        self._waiting.keep(held)

    def _release(self, number: int, edits: tuple[Edit, ...], rung: Rung | None = None) -> None:
        held = self._waiting.take(number)
        if held is None:  # too much had come behind it
            return
        client, server = self._client, Endpoint(*held.target)
        ends = (client, server) if held.side is Side.CLIENT else (server, client)
        PASSED.add(held.side, *ends, held.data, edits, self._flow.id, rung)
        for edit in edits:
            count("algate_edits_total", edit.reason, "yes" if self._mode is Mode.REWRITE else "no")
        if edits and self._mode is Mode.REWRITE:
            edited = apply_edits(held.data, edits)
            if len(edited) <= LONGEST:
                held.data = edited
        for one in self._waiting.let_go(held):
            self._send(one.side, one.target, one.data)

    # --- the engine -------------------------------------------------------------------------------------------------

    def _feed(self, event: SipEvent) -> None:
        """Give the engine an event and do what it answers. No answer comes while that is being done."""
        for command in self._engine.handle(event):
            self._do(command)
        self._changed.set()

    def _do(self, command: SipCommand) -> None:
        match command:
            case Release(number, edits, rung):
                self._release(number, edits, rung)
            case OpenConversation():
                self.conversations.open(command, self._client.host, self._public)
            case UpdateConversation():
                self.conversations.update(command)
            case ClosePinhole(ref):
                self.conversations.close(ref)
            case StandDown(client, server, rule):
                log.info("alg.stand_down", flow=self._flow.id, client=str(client), server=server, rule=rule)
            case RevokeConversation(client, server, rule):
                self._revoked.add(server)
                log.warning("alg.revoke", flow=self._flow.id, client=str(client), server=server, rule=rule)
            case Note(code, detail):
                log.info("alg.note", flow=self._flow.id, code=code, detail=detail)

    def _told(self, ref: int, outcome: Endpoint | str) -> None:
        """What became of a conversation: its public endpoint, or the rule by which it was refused."""
        if self._closed:
            self.conversations.close(ref)
        elif isinstance(outcome, str):
            self._feed(Refused(ref, outcome, time.monotonic()))
        else:
            self._feed(Opened(ref, outcome, time.monotonic()))

    # --- time -------------------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        while True:
            self._changed.clear()
            self._changed.wait(self._timeout())
            now = time.monotonic()
            deadline = self._engine.deadline()
            if deadline is not None and deadline <= now:
                self._feed(Tick(now))
            if len(self.conversations) and self._next_look <= now:
                self._next_look = now + self._every
                gevent.spawn(self._look_at_traffic)

    def _timeout(self) -> float | None:
        times = [self._engine.deadline(), self._next_look if len(self.conversations) else None]
        pending = [time for time in times if time is not None]
        return max(0.0, min(pending) - time.monotonic()) if pending else None

    def _look_at_traffic(self) -> None:
        """Tell the engine what the kernel has counted: of a call whose BYE was lost nothing moves. Waits for it."""
        counted = {ref: (packets_in, packets_out) for ref, packets_in, packets_out in self.conversations.traffic()}
        if self._closed:
            return
        if any(packets != self._counted.get(ref, (0, 0)) for ref, packets in counted.items()):
            self._alive()
        self._counted = counted
        for ref, packets in counted.items():
            self._feed(Activity(ref, *packets, time.monotonic()))

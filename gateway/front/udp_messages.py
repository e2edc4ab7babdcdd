"""Datagrams of a UDP association that a protocol module reads: the driver of an engine whose public endpoint is fixed.

The association's socket towards the outside is the client's public endpoint, and is there without anybody opening it;
what the engine opens are conversations for media, which are the kernel's and do not go through the association (0071).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
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
from gateway.conversations import Conversations, Pinholes
from gateway.flow import Flow
from gateway.front.socks5_udp import MAX_ADDRESS_HEADER, MAX_DATA
from gateway.front.udp_route import Host, Outside, bound
from gateway.observe.counters import count
from gateway.observe.trace import PASSED

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
    pinholes: Pinholes
    engine: Callable[[Endpoint, Endpoint], Engine]
    look_every: float


Send = Callable[[Side, Host, bytes], None]
Way = tuple[Side, Host]  # who sends, and the target that it is sent to, or comes from


class _Held:
    """A datagram that has not gone yet; `ready` when the engine has released it."""

    __slots__ = ("data", "number", "ready", "way")

    def __init__(self, number: int, way: Way, data: bytes) -> None:
        self.number = number
        self.way = way
        self.data = data
        self.ready = False


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
        self._numbers = itertools.count(1)
        self._held: dict[int, _Held] = {}  # that the engine has not released
        self._ways: dict[Way, deque[_Held]] = {}  # in the order in which they came
        self._changed = Wakeup()
        self._timer = gevent.spawn(self._keep_time)
        self._closed = False

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return self._engine.calls()

    def admit(self, target: Host, header: bytes) -> bool:
        """Read what is said with `target` from now on, if it is to be read at all."""
        if target[0] in self._revoked and not any((side, target) in self._ways for side in Side):
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
        self._held.clear()
        self._ways.clear()
        self.conversations.close_all()

    # --- datagrams --------------------------------------------------------------------------------------------------

    def take(self, side: Side, target: Host, data: bytes) -> None:
        """A datagram of `side`: it goes on at once, or when what it waits for has come."""
        number = next(self._numbers)
        way = side, target
        waiting = self._ways.setdefault(way, deque())
        if len(waiting) >= MOST_WAITING:
            for held in [held for held in waiting if not held.ready]:
                self._release(held.number, ())
            waiting = self._ways.setdefault(way, deque())
        held = self._held[number] = _Held(number, way, data)
        waiting.append(held)
        server = Endpoint(str(canonical(target[0].partition("%")[0])), target[1])
        self._feed(Datagram(number, side, self._client, server, data, time.monotonic()))

    def _release(self, number: int, edits: tuple[Edit, ...], rung: Rung | None = None) -> None:
        held = self._held.pop(number, None)
        if held is None:  # too much had come behind it
            return
        side, (host, port) = held.way
        ends = self._client, Endpoint(host, port)
        PASSED.add(side, *(ends if side is Side.CLIENT else ends[::-1]), held.data, edits, self._flow.id, rung)
        for edit in edits:
            count("algate_edits_total", edit.reason, "yes" if self._mode is Mode.REWRITE else "no")
        if edits and self._mode is Mode.REWRITE:
            edited = apply_edits(held.data, edits)
            if len(edited) <= LONGEST:
                held.data = edited
        held.ready = True
        waiting = self._ways[held.way]
        while waiting and waiting[0].ready:
            self._send(*held.way, waiting.popleft().data)
        if not waiting:
            del self._ways[held.way]

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

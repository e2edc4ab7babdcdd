"""The driver of a datagram module: shows it datagrams, carries out its commands, and sends the datagrams on in order.

What carries the datagrams (the kernel's queue, an association of SOCKS) is a `Carrier`.

Two things hold for every datagram. It is sent on once, edited or as it came, whatever the module does; and datagrams of
one way are sent on in the order in which they came. A datagram whose message names a peer is sent on after the kernel
lets that peer in, as `alg.datagrams.Release` promises.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import gevent
import structlog
from gevent.event import Event as Wakeup

from alg.address import Endpoint
from alg.api import (
    PINHOLE_KINDS,
    Activity,
    ClosePinhole,
    Edit,
    Mode,
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
    apply_edits,
)
from alg.datagrams import (
    Datagram,
    DatagramCommand,
    DatagramEvent,
    DatagramModule,
    Release,
    RevokeConversation,
    StandDown,
)
from gateway.driver.conversations import Conversations
from gateway.driver.faults import Faults
from gateway.driver.guard import ModuleGuard, alarm
from gateway.driver.notes import is_to_log
from gateway.driver.ordering import InOrder, QueuedDatagram
from gateway.driver.probe import is_proven
from gateway.net.addresses import PublicAddress
from gateway.observe.counters import Key, counts
from gateway.observe.trace import Trace
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

LONGEST_HOLD = 2.5
"""Seconds that a datagram waits at most. Then it is sent on, whatever its module or the broker has still to answer."""

MOST_PROBES = 64  # ports of clients that are looked at, at a time


class HeldDatagram(QueuedDatagram):
    """A datagram that was not sent on yet.

    `item`: what identifies it for the carrier. `edited`: what is sent in place of `data`, if anything. `edits`, `rung`:
    what the module's `Release` said; `waits`: the conversations that have to let a peer in before it is sent.
    """

    __slots__ = ("client", "data", "edited", "edits", "item", "rung", "server", "side", "waits")

    def __init__(
        self, way: Hashable, side: Side, client: Endpoint, server: Endpoint, data: bytes, item: Any, since: float
    ) -> None:
        super().__init__(way, since)
        self.side = side
        self.client = client
        self.server = server
        self.data = data
        self.item = item
        self.edited: bytes | None = None
        self.edits: tuple[Edit, ...] = ()
        self.rung: Rung | None = None
        self.waits: set[int] | None = None


Said = StandDown | RevokeConversation | Note


def log_said(command: Said, **names: str) -> None:
    """Log what a module has reported. `names` are further fields of the line."""
    match command:
        case StandDown(client, server, rule):
            log.info("alg.stand_down", client=str(client), server=server, rule=rule, **names)
        case RevokeConversation(client, server, rule):
            log.warning("alg.revoke", client=str(client), server=server, rule=rule, **names)
        case Note(code, detail) if is_to_log(command):
            log.info("alg.note", code=code, detail=detail, **names)


class Placement(NamedTuple):
    """Where a conversation is to be opened. `client`: the inside host that it must belong to; `public`: the address at
    which it listens, None: it cannot be opened; `read`: whether the module reads its datagrams. `own`: the public
    endpoint that the carrier has for it already, with the peers let in: nothing is opened."""

    client: str
    public: PublicAddress | None
    read: bool = False
    own: Endpoint | None = None


class DatagramCarrier(Protocol):
    """What brings datagrams to the driver, and sends them on."""

    def send(self, held: HeldDatagram) -> None:
        """Send a datagram on: `edited` if it is set, otherwise as it came."""
        ...

    def place(self, command: OpenConversation | OpenMapping) -> Placement:
        """Return where to open what the module asks for."""
        ...

    def changed(self) -> None:
        """Called when the module was told something, after which its journal may have changed."""
        ...

    def media_moved(self) -> None:
        """Called when conversations have carried something since the last poll."""
        ...

    def admitted(self, ref: int) -> None:
        """Called when the peers that were to be let in to this conversation are, or will not be."""
        ...

    def said(self, command: Said) -> None:
        """Called when the module has reported something."""
        ...


class Setting(NamedTuple):
    """How a module is driven. `name`: the module's name, for the log; `most`: how many datagrams may wait at a time;
    `flow`: the id of the flow in leases; `names`: further fields of each log line; `look_every`: seconds between two
    polls of what conversations have carried, None: never; `shown`: whether its messages may be traced; `guard`: counts
    its slow calls with those of others, None: it has one of its own; `kinds`: the kinds of pinholes that the module's
    class declares."""

    name: str
    mode: Mode
    flow: str
    most: int
    names: dict[str, str]
    look_every: float | None
    shown: bool
    guard: ModuleGuard | None = None
    kinds: frozenset[str] = frozenset(PINHOLE_KINDS)


class DatagramDriver:
    """Drives one module. Call `take` for each datagram; `run` keeps time, in a greenlet of its own."""

    def __init__(
        self,
        module: DatagramModule,
        setting: Setting,
        pinholes: ConversationBackend,
        carrier: DatagramCarrier,
        trace: Trace,
        now: Callable[[], float] = time.monotonic,
        prove: Callable[[Probe], bool] | None = is_proven,
    ) -> None:
        """`prove`: whether a port answers as a module expects it; it may wait. None: nothing is asked, and all do."""
        self.counters: Counter[str] = Counter()
        self.module = module
        self.setting = setting
        self.conversations = Conversations(pinholes, setting.mode, setting.flow, self._on_outcome, self._admitted)
        self._carrier = carrier
        self._trace = trace
        self._now = now
        self._prove = prove
        self._waiting: InOrder[HeldDatagram] = InOrder()
        self._behind: dict[int, list[HeldDatagram]] = {}  # by the conversation that has to let a peer in first
        self._events: deque[DatagramEvent] = deque()
        self._handling = self._closed = False
        self._changed = Wakeup()
        self._wakes_at = math.inf  # when `run` comes back by itself
        self._next_look = now() + setting.look_every if setting.look_every is not None else math.inf
        self._carried: dict[int, tuple[int, int]] = {}
        self._faults = Faults(setting.name, setting.names, setting.guard or ModuleGuard())
        self._probing = 0
        self._edit_keys: dict[str, Key] = {}

    def __len__(self) -> int:
        """The number of datagrams on which the module has not decided yet."""
        return len(self._waiting)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def take(
        self, side: Side, client: Endpoint, server: Endpoint, data: bytes, item: Any, way: Hashable
    ) -> HeldDatagram | None:
        """Show the module a datagram, which is sent on now or later. Returns it if it has to wait, otherwise None."""
        now = self._now()
        held = HeldDatagram(way, side, client, server, data, item, now)
        if self._waiting.kept >= self.setting.most and not self._make_room(way):
            self.counters["crowded"] += 1
            self._carrier.send(held)
            return None
        self._waiting.add(held)
        if self._faults.unread and self._faults.is_unread(client, server.host, now):
            self._go(held)
        else:
            self._feed(Datagram(held.number, side, client, server, data, now))
        if not self._waiting.keep(held):
            return None
        if not held.ready:
            self.counters["held"] += 1
            self._wake_by(now + LONGEST_HOLD)
        return held

    def _make_room(self, way: Hashable) -> bool:
        """Make room when too many wait: those of this way are sent on as they are, in order. Returns whether there is
        room now."""
        for waiting in self._waiting.of_way(way):
            self._end_wait(waiting.number)
        return self._waiting.kept < self.setting.most

    def _release(self, command: Release, admitting: set[int] | None) -> None:
        held = self._waiting.get(command.packet)
        if held is None:  # its time was over
            return
        held.edits, held.rung = command.edits, command.rung
        if admitting:
            held.waits = admitting
            for ref in admitting:
                self._behind.setdefault(ref, []).append(held)
        else:
            self._go(held)

    def _end_wait(self, number: int) -> None:
        """End the wait of a datagram. What the module has said about it holds."""
        held = self._waiting.get(number)
        if held is not None:
            self._go(held)

    def _go(self, held: HeldDatagram) -> None:
        if self._waiting.take(held.number) is None:
            return
        held.waits = None
        edits = held.edits
        if self.setting.shown:
            ends = (held.client, held.server) if held.side is Side.CLIENT else (held.server, held.client)
            flow = self.setting.names.get("flow", "")
            self._trace.add(held.side, ends[0], ends[1], held.data, edits, flow, held.rung, transport="udp")
        if edits:
            self._count(edits)
            if self.setting.mode is Mode.REWRITE:
                try:
                    held.edited = apply_edits(held.data, edits)
                except ValueError as error:
                    self._broken(error, held.client, held.server.host)
        for ready in self._waiting.let_go(held):
            self._carrier.send(ready)

    def _count(self, edits: tuple[Edit, ...]) -> None:
        for edit in edits:
            key = self._edit_keys.get(edit.reason)
            if key is None:
                done = "yes" if self.setting.mode is Mode.REWRITE else "no"
                key = self._edit_keys[edit.reason] = ("algate_edits_total", edit.reason, done)
            counts[key] += 1

    # --- the module -------------------------------------------------------------------------------------------------

    def tell(self, event: DatagramEvent) -> None:
        """Pass an event to the module."""
        if not self._closed:
            self._feed(event)

    def _feed(self, event: DatagramEvent) -> None:
        """Pass an event to the module, and carry out its commands. An event that this causes is handled afterwards."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event = self._events.popleft()
                try:
                    self._do_all(self._answer_to(event))
                except Exception as error:  # what is no command, or makes no sense
                    self._failed(event, error)
        finally:
            self._handling = False
        self._carrier.changed()
        deadline = self._deadline()
        if deadline is not None:
            self._wake_by(deadline)
        if len(self.conversations):
            self._wake_by(self._next_look)

    def _answer_to(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        if self._faults.is_out:
            if isinstance(event, Datagram):
                self._end_wait(event.packet)
            return []
        began = self._faults.begin()
        before = alarm.enter()
        try:
            answer = self.module.handle(event)
            if not isinstance(answer, (list, tuple)):
                answer = tuple(answer)  # such as a generator: it has yet to run
            self._faults.end(began)
            return answer
        except (gevent.GreenletExit, gevent.Timeout):  # not its own: it is ended while it waits
            raise
        except BaseException as error:  # a module may fail in any way: it must not take others with it
            self._failed(event, error)
            return []
        finally:
            alarm.leave(before)

    def _failed(self, event: DatagramEvent, error: BaseException) -> None:
        """The module has made a mistake with this event. What was shown to it goes as it came."""
        if isinstance(event, Datagram):
            self._broken(error, event.client, event.server.host)
            self._end_wait(event.packet)
        else:
            self._broken(error, None, "")

    def _broken(self, error: BaseException, client: Endpoint | None, server: str) -> None:
        self._faults.add(error, client, server, self._now())

    def _deadline(self) -> float | None:
        """Return when the module wants a tick. Where it has failed, it is asked later."""
        if self._faults.is_out:
            return None
        if self._now() < self._faults.silent_until:
            return self._faults.silent_until
        before = alarm.enter()
        try:
            at = self.module.deadline()
            return None if at is None else float(at)
        except (gevent.GreenletExit, gevent.Timeout):
            raise
        except BaseException as error:
            self._broken(error, None, "")
            return self._faults.silent_until
        finally:
            alarm.leave(before)

    def _do_all(self, commands: Sequence[DatagramCommand]) -> None:
        admitting: set[int] | None = None
        for command in commands:
            if isinstance(command, Release):
                self._release(command, set(admitting) if admitting else None)
                continue
            self._do(command)
            if isinstance(command, (UpdateConversation, UpdateMapping)) and self.conversations.is_admitting(
                command.ref
            ):
                admitting = admitting or set()
                admitting.add(command.ref)

    def _do(self, command: DatagramCommand) -> None:
        match command:
            case OpenConversation() | OpenMapping() if not self._declares(command):
                self._on_outcome(command.ref, "kind", None)
            case OpenConversation():
                client, public, read, own = self._carrier.place(command)
                if own is not None:
                    self._on_outcome(command.ref, own, None)
                else:
                    self.conversations.open(command, client, public, read)
            case OpenMapping():
                client, public, _, _ = self._carrier.place(command)
                self.conversations.map(command, client, public)
            case UpdateConversation() | UpdateMapping():
                self.conversations.update(command)
            case Probe():
                self._probe(command)
            case ClosePinhole(ref):
                self.conversations.close(ref)
            case StandDown() | RevokeConversation() | Note():
                self._carrier.said(command)

    def _declares(self, command: OpenConversation | OpenMapping) -> bool:
        """Whether the module's class declares that it asks for this kind of pinholes."""
        return ("mapping" if isinstance(command, OpenMapping) else "conversation") in self.setting.kinds

    def _probe(self, command: Probe) -> None:
        # Only a socket of a client that uses this module has a place, so only such clients are connected to.
        mapping = OpenMapping(command.ref, command.target, ("tcp",), None, 0.0, "")
        client, public, _, _ = self._carrier.place(mapping)
        if client != command.target.host or public is None or self._probing >= MOST_PROBES:
            gevent.get_hub().loop.run_callback(self._on_outcome, command.ref, "probe", None)
            return
        if self._prove is None:
            self._on_outcome(command.ref, command.target, None)
            return
        self._probing += 1
        gevent.spawn(self._look_who_listens, command, self._prove)

    def _look_who_listens(self, command: Probe, prove: Callable[[Probe], bool]) -> None:
        proven = False
        try:
            proven = prove(command)
        finally:
            self._probing -= 1
            if not self._closed:
                self._on_outcome(command.ref, command.target if proven else "probe", None)

    def _on_outcome(self, ref: int, outcome: Endpoint | str, inner: Endpoint | None) -> None:
        """Handle the result for a conversation: its public endpoint, or the rule by which it was refused."""
        if self._closed:
            self.conversations.close(ref)
        elif isinstance(outcome, str):
            self._feed(Refused(ref, outcome, self._now()))
        else:
            self._feed(Opened(ref, outcome, self._now()))

    def _admitted(self, ref: int) -> None:
        """Send on what waited for peers to be let in to this conversation."""
        self._carrier.admitted(ref)
        for held in self._behind.pop(ref, ()):
            if held.waits is not None:
                held.waits.discard(ref)
                if not held.waits:
                    self._go(held)

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Give the module its ticks, poll what was carried, and send on what waits too long. Does not return."""
        while True:
            self._changed.clear()
            times = [self._deadline(), self._next_look if len(self.conversations) else None]
            if (oldest := self._waiting.oldest()) is not None:
                times.append(oldest.since + LONGEST_HOLD)
            self._wakes_at = min((time for time in times if time is not None), default=math.inf)
            left = self._wakes_at - self._now()
            self._changed.wait(None if math.isinf(left) else max(0.0, left))
            self.tick()

    def _wake_by(self, when: float) -> None:
        if when < self._wakes_at:
            self._wakes_at = when
            self._changed.set()

    def tick(self) -> None:
        """Do what is due."""
        now = self._now()
        while (oldest := self._waiting.oldest()) is not None and oldest.since + LONGEST_HOLD <= now:
            self.counters["overdue"] += 1
            self._end_wait(oldest.number)
        deadline = self._deadline()
        if deadline is not None and deadline <= now:
            self._feed(Tick(now))
        if len(self.conversations) and self._next_look <= now and self.setting.look_every is not None:
            self._next_look = now + self.setting.look_every
            gevent.spawn(self.look_at_traffic)

    def look_at_traffic(self) -> None:
        """Tell the module what the kernel has counted. Waits for the broker."""
        counted = {ref: (came, went) for ref, came, went in self.conversations.traffic()}
        if self._closed:
            return
        if any(packets != self._carried.get(ref, (0, 0)) for ref, packets in counted.items()):
            self._carrier.media_moved()
        self._carried = counted
        for ref, packets in counted.items():
            self._feed(Activity(ref, *packets, self._now()))

    # --- the end ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send everything on as it is."""
        for number in self._waiting.numbers():
            self._end_wait(number)

    def close(self) -> None:
        """Close all that was opened. Nothing is sent any more."""
        self._closed = True
        self._waiting.clear()
        self._behind.clear()
        self.conversations.close_all()

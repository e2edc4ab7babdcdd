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
    ClosePinhole,
    Mode,
    Note,
    OpenConversation,
    Opened,
    OpenMapping,
    Probe,
    Refused,
    Side,
    Tick,
    UpdateConversation,
    UpdateMapping,
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
from gateway.driver.activity import ActivityWatch
from gateway.driver.conversations import Conversations
from gateway.driver.faults import Faults
from gateway.driver.guard import ModuleGuard, alarm
from gateway.driver.notes import is_to_log
from gateway.driver.outbox import LONGEST_HOLD, HeldDatagram, Outbox
from gateway.driver.probe import Probes, is_proven
from gateway.net.addresses import PublicAddress
from gateway.observe.trace import Trace
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

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
        self.module = module
        self.setting = setting
        self.conversations = Conversations(pinholes, setting.mode, setting.flow, self._on_outcome, self._admitted)
        self._carrier = carrier
        self._now = now
        shown, flow = trace if setting.shown else None, setting.names.get("flow", "")
        self._outbox = Outbox(carrier.send, shown, flow, setting.most, setting.mode is Mode.REWRITE, self._misfit)
        self._probes = Probes(prove, self._probed)
        first = now() + setting.look_every if setting.look_every is not None else math.inf
        self._activity = ActivityWatch(self.conversations, setting.look_every, self.tell, now, first, self._moved)
        self._events: deque[DatagramEvent] = deque()
        self._handling = self._closed = False
        self._changed = Wakeup()
        self._wakes_at = math.inf  # when `run` comes back by itself
        self._faults = Faults(setting.name, setting.names, setting.guard or ModuleGuard())

    def __len__(self) -> int:
        """The number of datagrams on which the module has not decided yet."""
        return len(self._outbox)

    @property
    def counters(self) -> Counter[str]:
        """How many datagrams waited, waited too long, or had no room to wait (`Outbox.counters`)."""
        return self._outbox.counters

    # --- datagrams --------------------------------------------------------------------------------------------------

    def take(
        self, side: Side, client: Endpoint, server: Endpoint, data: bytes, item: Any, way: Hashable
    ) -> HeldDatagram | None:
        """Show the module a datagram, which is sent on now or later. Returns it if it has to wait, otherwise None."""
        now = self._now()
        held = HeldDatagram(way, side, client, server, data, item, now)
        if not self._outbox.add(held):
            return None
        if self._faults.unread and self._faults.is_unread(client, server.host, now):
            self._outbox.go(held)
        else:
            self._feed(Datagram(held.number, side, client, server, data, now))
        if not self._outbox.keep(held):
            return None
        if not held.ready:
            self._wake_by(now + LONGEST_HOLD)
        return held

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
        if len(self.conversations) and (look := self._activity.deadline()) is not None:
            self._wake_by(look)

    def _answer_to(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        if self._faults.is_out:
            if isinstance(event, Datagram):
                self._outbox.end_wait(event.packet)
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
            self._outbox.end_wait(event.packet)
        else:
            self._broken(error, None, "")

    def _misfit(self, held: HeldDatagram, error: ValueError) -> None:
        self._broken(error, held.client, held.server.host)

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
                self._outbox.release(command, set(admitting) if admitting else None)
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
        self._probes.begin(command, client == command.target.host and public is not None)

    def _probed(self, ref: int, outcome: Endpoint | str) -> None:
        if not self._closed:
            self._on_outcome(ref, outcome, None)

    def _on_outcome(self, ref: int, outcome: Endpoint | str, inner: Endpoint | None) -> None:
        """Handle the result for a conversation: its public endpoint, or the rule by which it was refused."""
        if self._closed:
            self.conversations.close(ref)
        elif isinstance(outcome, str):
            self._feed(Refused(ref, outcome, self._now()))
        else:
            self._feed(Opened(ref, outcome, self._now()))

    def _admitted(self, ref: int) -> None:
        self._carrier.admitted(ref)
        self._outbox.admitted(ref)

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Give the module its ticks, poll what was carried, and send on what waits too long. Does not return."""
        while True:
            self._changed.clear()
            times = [self._deadline(), self._activity.deadline(), self._outbox.deadline()]
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
        self._outbox.tick(now)
        deadline = self._deadline()
        if deadline is not None and deadline <= now:
            self._feed(Tick(now))
        self._activity.tick()

    def look_at_traffic(self) -> None:
        """Tell the module what the kernel has counted. Waits for the broker."""
        self._activity.look()

    def _moved(self) -> None:
        if not self._closed:
            self._carrier.media_moved()

    # --- the end ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send everything on as it is."""
        self._outbox.flush()

    def close(self) -> None:
        """Close all that was opened. Nothing is sent any more."""
        self._closed = True
        self._outbox.clear()
        self.conversations.close_all()

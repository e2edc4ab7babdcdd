"""The driver of a protocol module over one flow: sockets and time in as events, its commands out as I/O.

A `Pump` moves the bytes and keeps each until it is delivered, `Openings` opens what the module asks for, a
`StreamModule` calls the module and counts what that costs, and an `Inspection` stands between them: it passes events to
the module, and carries out its commands.

Nothing that a module does costs its flow a byte. If it stands down, raises, hangs, holds back too much or for too long,
delivers what did not come, or costs more than its flow is worth, the pump delivers what is held as it came, and the
flow goes on unread. If it was the module's fault, the flow also loses its right to pinholes.
"""

from __future__ import annotations

from collections import deque

import gevent.socket as gsocket
import structlog
from gevent.event import Event as Wakeup

from alg.api import (
    AlgModule,
    AskTransfer,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FindSocket,
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
    OpenRelay,
    Probe,
    Received,
    Refused,
    Revoke,
    Say,
    Side,
    Tick,
    UpdateConversation,
    UpdateExchange,
    UpdateGre,
    UpdateMapping,
    apply_edits,
)
from alg.registry import Traits
from gateway.driver.activity import ActivityWatch
from gateway.driver.afterlife import Survivor
from gateway.driver.conversations import Conversations
from gateway.driver.guard import Broken, described
from gateway.driver.notes import is_to_log
from gateway.driver.openings import Openings
from gateway.driver.pump import Pump
from gateway.driver.stream_module import StreamModule
from gateway.driver.surroundings import Surroundings
from gateway.flow.carrier import ModuleAtWork
from gateway.flow.table import HALF_CLOSE_TIMEOUT, Flow
from gateway.net.relay.half import Legacy
from gateway.observe.trace import PASSED

log = structlog.get_logger()

LONGEST_HOLD = 60.0
"""Seconds without a delivery, after which what a module holds (or an end of the stream) passes it by."""


class Inspection:
    """Carries one flow through a module."""

    def __init__(
        self,
        flow: Flow,
        module: AlgModule,
        traits: Traits,
        mode: Mode,
        sockets: dict[Side, gsocket.socket],
        around: Surroundings,
    ) -> None:
        self.reason = "eof"
        self._flow = flow
        self._module = StreamModule(module, traits, flow.module or "", flow.id, around.guard, around.now)
        self._mode = mode
        self._around = around
        self._now = around.now
        self._pump = Pump(sockets, self._received, self._closed, self._wake, self._is_to_wait)
        # Towards the server it is not the socket's own where that has the client's address.
        own = str(sockets[Side.CLIENT].getsockname()[0]), around.public[Side.SERVER].local
        self._openings = Openings(flow, mode, around, own, traits.kinds, self._feed)
        self._activity = ActivityWatch(self.conversations, traits.look_every, self._feed, self._now)
        self._events: deque[Event] = deque()
        self._handling = False
        self._delivered_at = self._now()
        self._wakes_at: float | None = None
        self._changed = Wakeup()

    # --- the flow ---------------------------------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Bytes from the client so far."""
        return self._pump.up

    @property
    def down(self) -> int:
        """Bytes from the server so far."""
        return self._pump.down

    @property
    def conversations(self) -> Conversations:
        """The conversations of the module."""
        return self._openings.conversations

    def run(self, early: bytes = b"") -> Legacy | None:
        """Carry the flow. Returns None when it is over, otherwise what is left for another carrier, because the flow is
        to be relayed unread from now on. `early` are bytes of the client that came with its handshake."""
        pump = self._pump
        try:
            self._ask_deadline()
            if early:
                pump.came(Side.CLIENT, early)
            pump.start()
            while not (pump.over or pump.movable):
                self._changed.clear()
                self._wakes_at = self._due()
                self._changed.wait(None if self._wakes_at is None else max(0.0, self._wakes_at - self._now()))
                self._tick()
            return pump.hand_over() if pump.movable and not pump.over else None
        finally:
            self._leave()
            pump.stop()

    def _leave(self) -> None:
        """The module's work on its flow is over. What it has open ends, or goes on with the module."""
        if self.reason == "aborted" or not self._module.lives_on():
            self._openings.end()
            return
        survivor = Survivor(
            self._flow, self._module.module, self._module.traits.look_every, self._around.guard, self._now
        )
        self._around.afterlife.add(survivor, self._openings.leave(survivor.tell))

    def readers(self) -> tuple[ModuleAtWork, ...]:
        """The module that reads it."""
        return (ModuleAtWork(self._module.name, self._module.module, self.conversations, "tcp"),)

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return self._pump.hosts()

    def abort(self, reset: bool = True) -> None:
        """End the flow now, with a reset to both sides."""
        self._fail("aborted")

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._pump.abort()

    def _wake(self) -> None:
        self._changed.set()

    def _due(self) -> float | None:
        """Return when there is something to do if nothing happens."""
        times = [self._half_closes_at()]
        if not self._pump.passing and not self._handling:
            times += (self._activity.deadline(), self._stalls_at(), self._module.deadline)
        return min((t for t in times if t is not None), default=None)

    def _tick(self) -> None:
        now = self._now()
        if (at := self._half_closes_at()) is not None and now >= at:
            self._fail("half-closed")
            return
        if self._pump.passing or self._handling:
            return
        if self._module.is_out:
            self._stand_down("out")
            return
        if (at := self._stalls_at()) is not None and now >= at:
            self._stand_down("stalled")
            return
        self._activity.tick()
        if self._module.is_due(now):
            self._feed(Tick(now))

    def _half_closes_at(self) -> float | None:
        return self._pump.moved_at + HALF_CLOSE_TIMEOUT if self._pump.half_closed else None

    def _stalls_at(self) -> float | None:
        directions = self._pump.directions.values()
        if not any(direction.held or (direction.closed and not direction.asked) for direction in directions):
            return None
        return self._delivered_at + LONGEST_HOLD

    # --- what the pump tells ----------------------------------------------------------------------------------------

    def _received(self, side: Side, data: bytes) -> None:
        """Give the module what came, piece by piece. What it is not given any more passes unread."""
        self._openings.settle(side)
        pump = self._pump
        held = pump.directions[side].held
        if len(held) == len(data):
            self._delivered_at = self._now()
        at = 0
        while at < len(data) and not pump.passing:
            piece = data[at : at + self._module.piece]
            at += len(piece)
            self._feed(Received(side, piece, self._now()))
        if len(held) > self._module.traits.most_held and not (pump.passing or self._handling or self._openings.asking):
            self._stand_down("held")

    def _closed(self, side: Side) -> None:
        self._openings.settle(side)
        self._delivered_at = self._now()
        self._feed(Closed(side, self._now()))

    def _is_to_wait(self, side: Side) -> bool:
        """Whether `side` is not to be read for the moment: the module is at work, or holds as much as it may until an
        answer comes."""
        full = len(self._pump.directions[side].held) > self._module.traits.most_held
        return self._handling or (full and self._openings.asking)

    # --- the module -------------------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Pass an event to the module, and carry out its commands. An event that this causes is handled afterwards."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and not self._pump.passing:
                if self._module.wait_for_turn():
                    continue
                self._handle(self._events.popleft())
            if not self._pump.passing:
                self._ask_deadline()
        except Broken as broken:
            self._broken(str(broken))
        finally:
            self._handling = False
            self._pump.wake()
            due = self._due()
            if due is not None and (self._wakes_at is None or due < self._wakes_at):
                self._changed.set()

    def _handle(self, event: Event) -> None:
        if self._module.is_out:
            self._stand_down("out")
            return
        admitting: list[int] = []
        commands = self._module.handle(event)
        try:
            for command in commands:
                if self._pump.passing and not isinstance(command, Note | Revoke):
                    break
                if admitting and isinstance(command, Deliver):
                    self._let_in(admitting)
                self._do(command)
                if isinstance(command, UpdateConversation | UpdateMapping | UpdateExchange | UpdateGre):
                    admitting.append(command.ref)
        except Exception as error:  # what is no command, or makes no sense
            raise Broken(described(error)) from error
        if self._openings.revoked:  # nothing more can come of reading it
            self._pump.pass_on()
        if self._module.count() and not self._pump.passing:
            self._stand_down("effort")

    def _let_in(self, refs: list[int]) -> None:
        """Wait until the peers of these conversations are let in, before a message that names them is delivered."""
        while refs:
            self._openings.let_in(refs.pop())

    def _ask_deadline(self) -> None:
        try:
            self._module.ask_deadline()
        except Broken as broken:
            self._broken(str(broken))

    def _broken(self, reason: str) -> None:
        """The module has failed; the flow goes on without it."""
        if not self._pump.passing:
            log.error("alg.broken", flow=self._flow.id, module=self._module.name, reason=reason)
            self._module.is_broken = True
            self._openings.revoke("broken", keeps=False)
            self._pump.pass_on()

    def _stand_down(self, reason: str) -> None:
        """The driver itself decides to let the flow go on unread."""
        log.warning("alg.unread", flow=self._flow.id, module=self._module.name, reason=reason)
        self._openings.revoke(reason, self._module.lives_on())
        self._pump.pass_on()

    def _do(self, command: Command) -> None:
        match command:
            case Deliver():
                self._deliver(command)
            case Say(to, data, reason):
                self._say(to, data, reason)
            case CloseWrite(to):
                self._close_write(to)
            case OpenPinhole() | OpenOutbound() | OpenMeeting():
                self._openings.open(command)
            case OpenRelay():
                self._openings.join(command)
            case AskTransfer(ref, other):
                permitted = not self._openings.revoked and self._around.may_transfer(other)
                log.info("alg.transfer", flow=self._flow.id, other=str(other), permitted=permitted)
                answer = Opened(ref, other, self._now()) if permitted else Refused(ref, "transfer", self._now())
                self._feed(answer)
            case OpenMapping(ref, target) | Probe(ref, target) if not self._around.may_map(target):
                self._feed(Refused(ref, "rule", self._now()))
            case OpenConversation() | OpenMapping() | OpenExchange() | OpenGre():
                self._openings.converse(command)
            case UpdateConversation() | UpdateMapping() | UpdateExchange() | UpdateGre():
                self._openings.change(command)
            case Probe():
                self._openings.probe(command)
            case ClosePinhole(ref):
                self._openings.close(ref)
            case FindSocket():
                self._openings.find(command)
            case Revoke(rule):
                self._openings.revoke(rule, self._module.lives_on())
            case Note(code, detail):
                if is_to_log(command):
                    log.info("alg.note", flow=self._flow.id, code=code, detail=detail)
            case Bypass():
                log.info("alg.bypass", flow=self._flow.id, module=self._module.name)
                self._pump.pass_on()
            case _:
                raise TypeError(f"{type(command).__name__} is no command")

    def _deliver(self, command: Deliver) -> None:
        edited = apply_edits(command.data, command.edits)
        direction = self._pump.directions[command.to.other]
        if not direction.held.startswith(command.data):
            raise ValueError(f"it delivers to the {command.to} what did not come")
        rewrite = self._mode is Mode.REWRITE
        for edit in command.edits:
            log.info(
                "alg.edit",
                flow=self._flow.id,
                reason=edit.reason,
                applied=rewrite,
                before=command.data[edit.start : edit.end].decode("latin-1"),
                after=edit.replacement.decode("latin-1"),
            )
        if self._module.traits.shown:
            ends = self._flow.client, self._flow.server
            source, destination = ends if command.to is Side.SERVER else ends[::-1]
            conceal = self._module.traits.conceal
            data = conceal(command.data) if conceal is not None else command.data
            traced = self._flow.id, command.rung
            PASSED.add(command.to.other, source, destination, data, command.edits, *traced, transport="tcp")
        if rewrite:
            direction.deliver(command.data, command.edits, edited)
        else:
            direction.deliver(command.data, (), command.data)
        self._delivered_at = self._now()

    def _say(self, to: Side, data: bytes, reason: str) -> None:
        rewrite = self._mode is Mode.REWRITE
        log.info("alg.say", flow=self._flow.id, reason=reason, applied=rewrite, to=to, data=data.decode("latin-1"))
        if rewrite:
            self._pump.directions[to.other].say(data)

    def _close_write(self, to: Side) -> None:
        direction = self._pump.directions[to.other]
        if not direction.closed:
            raise ValueError(f"it ends the stream to the {to}, and the {to.other} has not")
        if direction.held:
            direction.deliver(data := bytes(direction.held), (), data)
        direction.end()

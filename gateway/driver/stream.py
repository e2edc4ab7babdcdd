"""The driver of a protocol module over one flow: sockets and time in as events, its commands out as I/O."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping

import gevent
import gevent.socket as gsocket
import structlog
from gevent.event import Event as Wakeup

from alg.address import Endpoint
from alg.api import (
    Activity,
    AlgModule,
    AskTransfer,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    Mode,
    Note,
    OpenConversation,
    Opened,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
    UpdateConversation,
    apply_edits,
)
from gateway.driver.activity import ActivityWatch
from gateway.driver.conversations import Conversations
from gateway.driver.requests import Opening, advertised, is_forbidden, request_of
from gateway.flow.table import HALF_CLOSE_TIMEOUT, Flow
from gateway.model.errors import PinholeRefused
from gateway.net.addresses import PublicAddress
from gateway.net.relay.connection import local_hosts
from gateway.net.sockets import abort
from gateway.net.urgent import Marks, receive
from gateway.observe.trace import PASSED
from gateway.pinhole.backend import Backend, DataPaths

log = structlog.get_logger()

READ_SIZE = 16384
HIGH_WATER = 65536  # bytes waiting for a slow reader, beyond which the other side is not read
MOST_HELD = 32768  # bytes that the module holds back, beyond which their side is not read
TURN = 32  # events in a row, after which other flows have their turn
MOST_UNANSWERED = 4  # pinholes that a flow may be asking its backend for at a time, given up or not
OPENINGS = 200  # pinholes a second and flow, and as many at once: a flood must not reach the broker, who serves all


class Inspection:
    """Carries one flow through a module. `run` returns when the flow is over (True) or to be relayed unread (False).

    `may_transfer`: whether a rule lets the server exchange files with a third host.
    `public`: the address at which a side is told to find the other one. The client is told of a published server only.
    """

    def __init__(
        self,
        flow: Flow,
        module: AlgModule,
        mode: Mode,
        sockets: dict[Side, gsocket.socket],
        pinholes: Backend,
        paths: DataPaths,
        public: Mapping[Side, PublicAddress],
        may_transfer: Callable[[Endpoint], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.up = 0
        self.down = 0
        self.reason = "eof"
        self._flow = flow
        self.module = module
        self._mode = mode
        self._sockets = sockets
        self._pinholes = pinholes
        self._paths = paths
        self._public = public
        self._may_transfer = may_transfer
        self._now = now
        self._events: deque[Event] = deque()
        self._handling = False
        self._out = {side: bytearray() for side in Side}
        self._marks = {side: Marks() for side in Side}  # of what goes to a side
        self._no_more = dict.fromkeys(Side, False)
        self._writable = {side: Wakeup() for side in Side}  # something to send, or the end
        self._drained = {side: Wakeup() for side in Side}  # room for more
        self._leases: dict[int, Callable[[], None]] = {}  # how each is closed
        self._opening: set[int] = set()
        self._unanswered = 0
        self._openings_left = float(OPENINGS)
        self._openings_at = now()
        self._flooded = False
        self.conversations = Conversations(pinholes, mode, flow.id, self._told_soon)
        self._activity = ActivityWatch(self.conversations, getattr(module, "look_every", None), self._carried, now)
        self._revoked: str | None = None
        self._bypass = False
        self._over = False
        self._ended = False
        self._changed = Wakeup()
        self._half_closed_at: float | None = None

    # --- the flow ---------------------------------------------------------------------------------------------------

    def run(self, early: bytes = b"") -> bool:
        """Carry the flow; `early` are bytes of the client that came with its handshake."""
        if early:
            self._received(Side.CLIENT, early)
        readers = [gevent.spawn(self._read, side) for side in Side]
        writers = [gevent.spawn(self._write, side) for side in Side]
        try:
            while not (self._over or self._bypass or all(writer.dead for writer in writers)):
                self._changed.clear()
                self._changed.wait(self._timeout())
                self._tick()
            if self._bypass and not self._over:
                gevent.killall(readers)
                for side in Side:
                    self._no_more[side] = True  # of ours; the writer ends when all is sent
                    self._writable[side].set()
                gevent.joinall(writers)
                return self._over
            return True
        finally:
            self._ended = True
            gevent.killall([*readers, *writers])
            for close in self._leases.values():
                close()
            self._leases.clear()
            self.conversations.close_all()

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(*self._sockets.values())

    def abort(self, reset: bool = True) -> None:
        """End the flow now, with a reset to both sides."""
        self._fail("aborted")

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._over = True
        for sock in self._sockets.values():
            abort(sock)
        self._changed.set()

    def _timeout(self) -> float | None:
        times = [self.module.deadline(), self._activity.deadline()]
        if self._half_closed_at is not None:
            times.append(self._half_closed_at + HALF_CLOSE_TIMEOUT)
        pending = [t for t in times if t is not None]
        return max(0.0, min(pending) - self._now()) if pending else None

    def _tick(self) -> None:
        now = self._now()
        if self._half_closed_at is not None and now >= self._half_closed_at + HALF_CLOSE_TIMEOUT:
            self._fail("half-closed")
            return
        self._activity.tick()
        deadline = self.module.deadline()
        if deadline is not None and now >= deadline and not self._bypass:
            self._feed(Tick(now))

    def _read(self, side: Side) -> None:
        sock, out = self._sockets[side], self._out[side.other]
        while not self._over:
            while len(out) > HIGH_WATER or self._marks[side.other].held > MOST_HELD:
                self._drained[side.other].clear()
                self._drained[side.other].wait()
            try:
                data, urgent = receive(sock, READ_SIZE)
            except OSError:
                self._fail("reset")
                return
            if not data:
                self._half_closed_at = self._now()
                self._feed(Closed(side, self._now()))
                return
            self._received(side, data, urgent)

    def _received(self, side: Side, data: bytes, urgent: bool = False) -> None:
        self._marks[side.other].came(len(data), urgent)
        if side is Side.CLIENT:
            self.up += len(data)
        else:
            self.down += len(data)
        self._feed(Received(side, data, self._now()))

    def _write(self, side: Side) -> None:
        sock, out = self._sockets[side], self._out[side]
        try:
            while True:
                if out:
                    sent = self._marks[side].send(sock, bytes(out[:READ_SIZE]))
                    del out[:sent]
                    self._drained[side].set()
                elif self._no_more[side]:
                    if not self._bypass:
                        sock.shutdown(gsocket.SHUT_WR)
                    return
                else:
                    self._writable[side].clear()
                    self._writable[side].wait()
        except OSError:
            self._fail("reset")
        finally:
            self._changed.set()

    # --- the module -------------------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Give the module an event and do what it answers; an event that this causes waits for its turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        count = 0
        try:
            while self._events and not self._bypass:
                count += 1
                if count % TURN == 0:
                    gevent.sleep(0)
                for command in self.module.handle(self._events.popleft()):
                    self._do(command)
        finally:
            self._handling = False
        self._changed.set()

    def _do(self, command: Command) -> None:
        match command:
            case Deliver():
                self._deliver(command)
            case CloseWrite(to):
                self._no_more[to] = True
                self._writable[to].set()
            case OpenPinhole() | OpenOutbound() | OpenMeeting():
                self._open(command)
            case OpenRelay():
                self._join(command)
            case AskTransfer(ref, other):
                permitted = not self._revoked and self._may_transfer(other)
                log.info("alg.transfer", flow=self._flow.id, other=str(other), permitted=permitted)
                answer = Opened(ref, other, self._now()) if permitted else Refused(ref, "transfer", self._now())
                self._feed(answer)
            case OpenConversation():
                if self._revoked:
                    self._feed(Refused(command.ref, self._revoked, self._now()))
                else:
                    self.conversations.open(command, self._flow.client.host, self._public.get(Side.SERVER))
            case UpdateConversation():
                self.conversations.update(command)
            case ClosePinhole(ref):
                self._close(ref)
            case Revoke(rule):
                self._revoked = rule
                log.warning("alg.revoke", flow=self._flow.id, module=self._flow.module, rule=rule)
                for ref in (*self._leases, *self._opening):
                    self._close(ref)
                self.conversations.close_all()
            case Note(code, detail):
                log.info("alg.note", flow=self._flow.id, code=code, detail=detail)
            case Bypass():
                self._bypass = True
                log.info("alg.bypass", flow=self._flow.id, module=self._flow.module)

    def _deliver(self, command: Deliver) -> None:
        for edit in command.edits:
            log.info(
                "alg.edit",
                flow=self._flow.id,
                reason=edit.reason,
                applied=self._mode is Mode.REWRITE,
                before=command.data[edit.start : edit.end].decode("latin-1"),
                after=edit.replacement.decode("latin-1"),
            )
        edits = command.edits if self._mode is Mode.REWRITE else ()
        if getattr(self.module, "shown", False):
            ends = self._flow.client, self._flow.server
            source, destination = ends if command.to is Side.SERVER else ends[::-1]
            PASSED.add(command.to.other, source, destination, command.data, command.edits, self._flow.id, command.rung)
        data = apply_edits(command.data, edits)
        self._out[command.to] += data
        self._marks[command.to].delivered(command.data, edits, len(data))
        self._drained[command.to].set()  # the module may hold less now
        self._writable[command.to].set()

    # --- its pinholes -----------------------------------------------------------------------------------------------

    def _open(self, command: Opening) -> None:
        forbidden = "target" if is_forbidden(command, self._flow, self._public) else None
        refusal = self._revoked or forbidden or self._flood()
        observe = self._mode is Mode.OBSERVE
        if observe and isinstance(command, OpenMeeting):
            refusal = "observe"
        if refusal:
            self._feed(Refused(command.ref, refusal, self._now()))
        elif observe or (isinstance(command, OpenOutbound) and not self._pinholes.outbound):
            # Nothing is opened: the module shows what it would write, with port 0 for the one it would get.
            self._feed(Opened(command.ref, advertised(command, 0, self._flow, self._public), self._now()))
        else:
            self._opening.add(command.ref)
            self._unanswered += 1
            gevent.spawn(self._open_pinhole, command)

    def _flood(self) -> str | None:
        """Too many openings at a time or in a short time are refused here."""
        now = self._now()
        self._openings_left = min(OPENINGS, self._openings_left + (now - self._openings_at) * OPENINGS)
        self._openings_at = now
        if self._unanswered < MOST_UNANSWERED and self._openings_left >= 1:
            self._openings_left -= 1
            return None
        if not self._flooded:
            self._flooded = True  # said once: a log is not to be flooded either
            log.warning("pinhole.flood", flow=self._flow.id, client=self._flow.client.host)
        return "flood"

    def _join(self, command: OpenRelay) -> None:
        if self._revoked or self._mode is Mode.OBSERVE or is_forbidden(command, self._flow, self._public):
            return
        if self._flood():
            return
        client, server = (str(self._sockets[side].getsockname()[0]) for side in (Side.CLIENT, Side.SERVER))
        self._paths.join(command.client, command.server, (client, server), command.reason)

    def _open_pinhole(self, command: Opening) -> None:
        ref, inner = command.ref, None
        try:
            request = request_of(command, self._flow, self._public)
            if isinstance(command, OpenMeeting):
                lease, inner = self._paths.meet(request, self._sockets[Side.CLIENT].getsockname()[0])
            else:
                lease = self._pinholes.open(request)
        except PinholeRefused as refused:
            self._unanswered -= 1
            log.warning("pinhole.refused", flow=self._flow.id, rule=refused.rule, detail=refused.detail)
            self._opening.discard(ref)
            self._feed(Refused(ref, refused.rule, self._now()))
            return
        self._unanswered -= 1
        close = functools.partial((self._pinholes if inner is None else self._paths).close, lease)
        if self._ended or self._bypass or ref not in self._opening:  # nobody wants it any more
            close()
            return
        self._opening.discard(ref)
        self._leases[ref] = close
        public = advertised(command, lease.public.port, self._flow, self._public)
        self._feed(Opened(ref, public, self._now(), inner))

    def _told_soon(self, ref: int, outcome: Endpoint | str) -> None:
        gevent.spawn(self._told, ref, outcome)

    def _told(self, ref: int, outcome: Endpoint | str) -> None:
        """What became of a conversation: its public endpoint, or the rule by which it was refused."""
        if self._ended or self._bypass:
            self.conversations.close(ref)
        elif isinstance(outcome, str):
            self._feed(Refused(ref, outcome, self._now()))
        else:
            self._feed(Opened(ref, outcome, self._now()))

    def _carried(self, activity: Activity) -> None:
        if not self._ended and not self._bypass:
            self._feed(activity)

    def _close(self, ref: int) -> None:
        self.conversations.close(ref)
        self._opening.discard(ref)
        close = self._leases.pop(ref, None)
        if close is not None:
            close()

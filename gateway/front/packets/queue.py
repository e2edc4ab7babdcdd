"""The driver of UDP in the packet path: packets from NFQUEUE to the engine and back, its conversations to the broker.

A packet is read in the middle of the router, so the inside client has its own address in it, in both directions. The
packet's translation is the kernel's; only the payload is edited here.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
from alg.sip.events import Datagram, Moved, Release, RevokeConversation, SipCommand, SipEvent, StandDown
from alg.sip.journal import ConversationRecord, Entry, Record
from alg.sip.options import LOOK
from gateway.driver.conversations import Conversations, is_translated
from gateway.driver.ordering import Held, InOrder
from gateway.front.packets.journal import Journal
from gateway.front.packets.packet import NotWhole, UdpPacket, parse
from gateway.model.requests import Lease, Network
from gateway.net.addresses import PublicAddress
from gateway.observe.counters import Key, counts
from gateway.observe.metrics import Sample
from gateway.observe.trace import Trace
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

MOST_HELD = 1024  # packets that wait for a verdict; a further one passes untouched
LONGEST_HOLD = 2.5  # seconds; then a packet passes untouched, whatever the engine waits for
MOST_REMEMBERED = 65536  # sockets of clients
ADDRESSES = 2.0  # seconds between two looks at this host's addresses
WRITE, WRITE_SHARE = 0.005, 20  # seconds between two entries in the journal at least, and for one that took a second


class QueuedPacket(Protocol):
    """A packet of NFQUEUE. `retain` keeps its bytes beyond the callback; `accept` ends it."""

    def get_payload(self) -> bytes: ...

    def set_payload(self, payload: bytes) -> None: ...

    def retain(self) -> None: ...

    def accept(self) -> None: ...


class _HeldPacket(Held):
    """A packet without a verdict, and its payload if that is to be another one."""

    __slots__ = ("packet", "parsed", "payload", "side")

    def __init__(self, packet: QueuedPacket, parsed: UdpPacket, side: Side, since: float) -> None:
        super().__init__((parsed.source, parsed.destination), since)
        self.packet = packet
        self.parsed = parsed
        self.side = side
        self.payload: bytes | None = None


class Engine(Protocol):
    """What decides about datagrams (`alg.sip.session.SipEngine`)."""

    def handle(self, event: SipEvent) -> Sequence[SipCommand]: ...

    def deadline(self) -> float | None: ...

    def journal(self) -> list[Entry]: ...

    def restore(self, records: Sequence[Record], now: float) -> None: ...


class PacketFront:
    """All packets of one queue. `take` is the queue's callback; `run` keeps time, in a greenlet of its own.

    `inside`: who is a client. `public_towards`: where conversations with an outside host listen; None without a route.
    `journal`: what a predecessor knew is in it, and what a successor has to know is put there. `look_every`: seconds
    between two looks at the kernel's counters.
    """

    def __init__(
        self,
        engine: Engine,
        pinholes: ConversationBackend,
        mode: Mode,
        inside: Sequence[Network],
        public_towards: Callable[[str], PublicAddress | None],
        trace: Trace,
        now: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        look_every: float = LOOK,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.conversations = Conversations(pinholes, mode, f"p-{int(time.time() * 1000) & 0xFFFFFFFF:x}", self._told)
        self._engine = engine
        self._mode = mode
        self._inside = tuple(inside)
        self._public_towards = public_towards
        self._trace = trace
        self._now = now
        self._waiting: InOrder[_HeldPacket] = InOrder()
        self._facing: dict[str, str] = {}  # the outside host that an inside one spoke with last
        self._sockets: set[Endpoint] = set()  # of clients, that were seen here
        self._events: deque[SipEvent] = deque()
        self._handling = False
        self._changed = Wakeup()
        self._look_every = look_every
        self._next_activity = now() + look_every
        self._next_look = now() + ADDRESSES
        self._servers: dict[int, str] = {}  # with which outside host a conversation began
        self._journal = journal
        self._to_write, self._next_write = False, -math.inf
        self._write_timer: Any = None
        self._wakes_at = math.inf  # when `run` comes back by itself
        self._hosts: dict[str, bool] = {}  # whether they are inside
        self._edit_keys: dict[str, Key] = {}
        if journal is not None:
            self._take_over(journal)

    def _take_over(self, journal: Journal) -> None:
        """Go on with the conversations of the predecessor, as far as they were opened."""
        records = []
        for record, lease in journal.found:
            if isinstance(record, ConversationRecord):
                if lease is None:
                    continue
                read = record.reason == "sip.signalling"
                self.conversations.restore(record.ref, lease, read)
                if read:
                    self._sockets.add(record.target)
                if record.peers:
                    self._servers[record.ref] = record.peers[0]
            records.append(record)
        self._engine.restore(records, self._now())
        if records:
            log.info("packets.taken_over", conversations=len(self.conversations), records=len(records))

    # --- packets ----------------------------------------------------------------------------------------------------

    def take(self, packet: QueuedPacket) -> None:
        """Handle one packet of the queue: now, or when what it waits for has come."""
        self.counters["packets"] += 1
        try:
            parsed = parse(packet.get_payload())
        except NotWhole as error:
            self._pass(packet, error.reason)
            return
        side = self._side(parsed)
        if side is None or not parsed.payload:
            self._pass(packet, "other")
            return
        if len(self._waiting) >= MOST_HELD:
            self._pass(packet, "crowded")
            return
        client, server = parsed.source, parsed.destination
        if side is Side.SERVER:
            client, server = server, client
        now = self._now()
        held = self._waiting.add(_HeldPacket(packet, parsed, side, now))
        self._remember(client, server.host)
        self._feed(Datagram(held.number, side, client, server, parsed.payload, now))
        if self._waiting.keep(held):
            packet.retain()
            if not held.ready:
                self.counters["held"] += 1
                self._wake_by(now + LONGEST_HOLD)

    def _side(self, parsed: UdpPacket) -> Side | None:
        """Who sent it; None for what is not between inside and outside."""
        source, destination = self._is_inside(parsed.source.host), self._is_inside(parsed.destination.host)
        if source == destination:
            return None
        return Side.CLIENT if source else Side.SERVER

    def _is_inside(self, host: str) -> bool:
        known = self._hosts.get(host)
        if known is None:
            if len(self._hosts) >= MOST_REMEMBERED:
                self._hosts.clear()
            address = canonical(host)
            known = self._hosts[host] = any(address in network for network in self._inside)
        return known

    def _remember(self, client: Endpoint, server: str) -> None:
        if len(self._sockets) >= MOST_REMEMBERED:
            self._facing.clear()
            self._sockets.clear()
        self._facing[client.host] = server
        self._sockets.add(client)

    def _pass(self, packet: QueuedPacket, reason: str) -> None:
        self.counters[f"untouched_{reason}"] += 1
        packet.accept()

    def _release(self, number: int, edits: tuple[Edit, ...], rung: Rung | None = None) -> None:
        held = self._waiting.take(number)
        if held is None:  # its time was over
            return
        parsed = held.parsed
        self._trace.add(held.side, parsed.source, parsed.destination, parsed.payload, edits, rung=rung)
        if edits:
            self._count(edits)
            if self._mode is Mode.REWRITE:
                held.payload = apply_edits(parsed.payload, edits)
        for one in self._waiting.let_go(held):
            if one.payload is not None:
                try:
                    one.packet.set_payload(one.parsed.with_payload(one.payload))
                    self.counters["edited"] += 1
                except ValueError:
                    self.counters["untouched_grown"] += 1
            one.packet.accept()

    def _count(self, edits: tuple[Edit, ...]) -> None:
        for edit in edits:
            key = self._edit_keys.get(edit.reason)
            if key is None:
                done = "yes" if self._mode is Mode.REWRITE else "no"
                key = self._edit_keys[edit.reason] = ("algate_edits_total", edit.reason, done)
            counts[key] += 1

    # --- the engine -------------------------------------------------------------------------------------------------

    def _feed(self, event: SipEvent) -> None:
        """Give the engine an event and do what it answers; an event that this causes waits for its turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                for command in self._engine.handle(self._events.popleft()):
                    self._do(command)
        finally:
            self._handling = False
        if self._journal is not None and not self._to_write:
            self._to_write = True
            loop = gevent.get_hub().loop
            wait = self._next_write - self._now()
            if wait > 0:
                self._write_timer = loop.timer(wait)
                self._write_timer.start(self._write)
            else:
                loop.run_callback(self._write)
        deadline = self._engine.deadline()
        if deadline is not None:
            self._wake_by(deadline)

    def _wake_by(self, when: float) -> None:
        if when < self._wakes_at:
            self._wakes_at = when
            self._changed.set()

    def _write(self) -> None:
        """Put what has changed into the journal: once for all packets of a turn, or of some milliseconds if many come.
        A call that has come and gone meanwhile is not written at all."""
        self._to_write = False
        if self._write_timer is not None:
            self._write_timer.close()
            self._write_timer = None
        if self._journal is not None:
            begun = self._now()
            self._journal.put((entry, self._lease_of(entry.record)) for entry in self._engine.journal())
            ended = self._now()
            self._next_write = ended + max(WRITE, WRITE_SHARE * (ended - begun))

    def _lease_of(self, record: Record | None) -> Lease | None:
        return self.conversations.lease(record.ref) if isinstance(record, ConversationRecord) else None

    def _do(self, command: SipCommand) -> None:
        match command:
            case Release(number, edits, rung):
                self._release(number, edits, rung)
            case OpenConversation():
                server = self._servers.get(command.ref) or self._facing.get(command.target.host)
                if server is not None:
                    self._servers[command.ref] = server
                public = self._public_towards(server) if server is not None else None
                # What comes to a socket that speaks the protocol itself is for us to read; all else is media.
                read = command.target in self._sockets
                self.conversations.open(command, command.target.host, public, read)
            case UpdateConversation():
                self.conversations.update(command)
            case ClosePinhole(ref):
                self.conversations.close(ref)
            case StandDown(client, server, rule):
                log.info("alg.stand_down", client=str(client), server=server, rule=rule)
            case RevokeConversation(client, server, rule):
                log.warning("alg.revoke", client=str(client), server=server, rule=rule)
            case Note(code, detail):
                log.info("alg.note", code=code, detail=detail)

    def _told(self, ref: int, outcome: Endpoint | str) -> None:
        """What became of a conversation: its public endpoint, or the rule by which it was refused."""
        if isinstance(outcome, str):
            self._feed(Refused(ref, outcome, self._now()))
        else:
            self._feed(Opened(ref, outcome, self._now()))

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Give the engine its ticks, and let go what waits too long. Does not return."""
        while True:
            self._changed.clear()
            times = [self._engine.deadline(), self._next_activity, self._next_look]
            if (oldest := self._waiting.oldest()) is not None:
                times.append(oldest.since + LONGEST_HOLD)
            self._wakes_at = min(time for time in times if time is not None)
            self._changed.wait(max(0.0, self._wakes_at - self._now()))
            self.tick()

    def tick(self) -> None:
        """Do what is due."""
        now = self._now()
        while (oldest := self._waiting.oldest()) is not None and oldest.since + LONGEST_HOLD <= now:
            self.counters["overdue"] += 1
            self._release(oldest.number, ())
        deadline = self._engine.deadline()
        if deadline is not None and deadline <= now:
            self._feed(Tick(now))
        if self._next_activity <= now:
            self._next_activity = now + self._look_every
            gevent.spawn(self.look_at_traffic)
        if self._next_look <= now:
            self._next_look = now + ADDRESSES
            self._look_at_addresses(now)

    def _look_at_addresses(self, now: float) -> None:
        """Open anew what listens at an address that is not this host's towards its server any more."""
        for ref, server in list(self._servers.items()):
            if ref not in self.conversations:
                del self._servers[ref]
                continue
            lease = self.conversations.lease(ref)
            public = self._public_towards(server) if lease is not None and is_translated(lease.client) else None
            if lease is not None and public is not None and public.local != lease.public.host:
                log.warning("pinhole.moved", old=str(lease.public), address=public.local, target=str(lease.target))
                self._feed(Moved(ref, now))

    def look_at_traffic(self) -> None:
        """Tell the engine what the kernel has counted. Waits for the broker."""
        for ref, packets_in, packets_out in self.conversations.traffic():
            self._feed(Activity(ref, packets_in, packets_out, self._now()))

    def stop(self) -> None:
        """Let everything go as it is."""
        for number in self._waiting.numbers():
            self._release(number, ())

    def status(self) -> dict[str, Any]:
        """Counts since the start, as `algate status --json` shows them."""
        return {"waiting": len(self._waiting), "conversations": len(self.conversations), **self.counters}

    def samples(self) -> list[Sample]:
        """The same for the metrics."""
        values: dict[Key, float] = {
            ("algate_packets_waiting",): len(self._waiting),
            ("algate_conversations",): len(self.conversations),
        }
        for name, number in self.counters.items():
            _, untouched, reason = name.partition("untouched_")
            values[("algate_packets_untouched_total", reason) if untouched else (_METRICS[name],)] = number
        return list(values.items())


_METRICS = {
    "packets": "algate_packets_total",
    "edited": "algate_packets_edited_total",
    "held": "algate_packets_held_total",
    "overdue": "algate_packets_overdue_total",
}

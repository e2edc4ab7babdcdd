"""UDP in the packet path: passes packets from NFQUEUE to the modules of their ports, and sends them on.

A packet is read in the middle of the router, so the inside client has its own address in it, in both directions. The
kernel translates the packet; only the payload is edited here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import gevent
import structlog

from alg.address import Endpoint, canonical
from alg.api import OpenConversation, OpenMapping, Side
from alg.datagrams import DatagramModule, Entry, Moved, RecordedModule
from gateway.broker.marks import PASSING
from gateway.broker.nfqueue import QueuedPacket
from gateway.driver.datagrams import DatagramDriver, Placement, Said, Setting, log_said
from gateway.driver.module_calls import attempt
from gateway.driver.outbox import HeldDatagram
from gateway.front.packets.journal import Journal, Stored
from gateway.front.packets.packet import NotWhole, UdpPacket, parse
from gateway.model.requests import Along, Network
from gateway.net.addresses import PublicAddress
from gateway.observe.counters import Key
from gateway.observe.metrics import Sample
from gateway.observe.trace import Trace
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

MOST_HELD = 1024  # packets of a module that wait for a verdict; with a further one those of its way pass as they are
MOST_REMEMBERED = 65536  # sockets of clients
ADDRESSES = 2.0  # seconds between two looks at this host's addresses
WRITE, WRITE_SHARE = 0.005, 20  # seconds between two entries in the journal at least, and for one that took a second


class QueueModule(NamedTuple):
    """A module that reads packets of the queue. `ports`: those of servers; `setting`: how it is driven; `recorded`:
    whether its state outlives the process; `read_inbound`: whether it reads what arrives at the public ports of
    sockets that speak its protocol."""

    module: DatagramModule
    setting: Setting
    ports: frozenset[int]
    recorded: bool
    read_inbound: bool = True


class _Item:
    __slots__ = ("packet", "parsed")

    def __init__(self, packet: QueuedPacket, parsed: UdpPacket) -> None:
        self.packet = packet
        self.parsed = parsed


class _Line:
    """One module with its driver; the carrier of its datagrams (`gateway.driver.datagrams.DatagramCarrier`).

    `servers`: the outside host with which each conversation began; `facing`: the address of this host that faced it
    then.
    """

    def __init__(
        self,
        front: PacketFront,
        wanted: QueueModule,
        pinholes: ConversationBackend,
        trace: Trace,
        now: Callable[[], float],
    ) -> None:
        self.name = wanted.setting.name
        self.recorded = wanted.recorded
        self._read_inbound = wanted.read_inbound
        self.servers: dict[int, str] = {}
        self.facing: dict[int, str] = {}
        self._front = front
        self.driver = DatagramDriver(wanted.module, wanted.setting, pinholes, self, trace, now)

    def send(self, held: HeldDatagram) -> None:
        self._front.send(held)

    def place(self, command: OpenConversation | OpenMapping) -> Placement:
        client = command.target.host
        along = self._front.path(client, self.servers.get(command.ref))
        public = self._front.public_along(along) if along is not None else None
        if along is not None and public is not None:
            self.servers[command.ref] = along.destination.host
            self.facing[command.ref] = public.local
        if isinstance(command, OpenMapping) and not self._front.may_map(command.target):
            return Placement(client, None)
        # What comes to a socket that speaks the protocol itself is for us to read; all else is media.
        return Placement(client, public, self._read_inbound and self._front.knows(command.target))

    def changed(self) -> None:
        if self.recorded:
            self._front.write_soon()

    def media_moved(self) -> None:
        pass

    def admitted(self, ref: int) -> None:
        lease = self.driver.conversations.lease(ref)
        if lease is not None:
            self._front.admitted(lease.public, 1 if lease.second is None else 2)

    def said(self, command: Said) -> None:
        log_said(command)

    def entries(self) -> list[Stored]:
        """Return the entries that its successor has to know, and that are not written yet."""
        nothing: list[Stored] = []
        return attempt(self.name, self._changes, otherwise=nothing)

    def _changes(self) -> list[Stored]:
        stored = []
        for key, ref, record in cast(RecordedModule, self.driver.module).journal():
            kinds: tuple[object, object, object] = key, ref, record  # a later process has to be able to read it
            if not (
                isinstance(kinds[0], str)
                and (kinds[1] is None or isinstance(kinds[1], int))
                and (kinds[2] is None or isinstance(kinds[2], bytes))
            ):
                raise TypeError("an entry of the journal is not (text, number or None, bytes or None)")
            if ref is None or record is None:
                stored.append(Stored(self.name, key, record))
                continue
            lease = self.driver.conversations.lease(ref)
            read = self.driver.conversations.is_read(ref)
            stored.append(Stored(self.name, key, record, ref, lease, read, self.servers.get(ref, "")))
        return stored

    def take_over(self, found: Sequence[Stored], now: float) -> None:
        """Continue the conversations of the predecessor, as far as they were opened. If the module cannot, they are
        closed."""
        entries = []
        for entry in found:
            if entry.ref is not None:
                if entry.lease is None:
                    continue
                self.driver.conversations.restore(entry.ref, entry.lease, entry.read)
                if entry.server:
                    self.servers[entry.ref] = entry.server
            entries.append(Entry(entry.key, entry.ref, entry.record))
        if not attempt(self.name, self._restore, entries, now, otherwise=False):
            self.driver.conversations.close_all()

    def _restore(self, entries: Sequence[Entry], now: float) -> bool:
        cast(RecordedModule, self.driver.module).restore(entries, now)
        return True


def _may_map(target: Endpoint) -> bool:
    """The default of `may_map`: no rule says otherwise."""
    return True


def _unheard(public: Endpoint, ports: int) -> None:
    """The default of `admitted`: does nothing."""


def go_on(packet: QueuedPacket) -> None:
    """Let a packet of mangle FORWARD go on, through the rules of others that are behind ours there: an accepted packet
    would pass by them, and miss the DSCP or mark that they give. It goes through that chain once more, with the mark by
    which our lines leave it alone; the table `algate` takes that mark away behind it."""
    packet.set_mark(packet.mark | PASSING)
    packet.repeat()


class PacketFront:
    """Handles all packets of one queue. `take` is the queue's callback; `run` keeps time, in a greenlet of its own.

    `inside`: the networks of clients. `public_along`: returns where conversations of a flow listen; None without a
    route. `journal`: holds the entries of the predecessor, and gets those for the successor. `admitted` is called with
    the first public port, and how many there are, where a peer was let in. `may_map`: whether a rule lets a client have
    a mapping to this socket.
    """

    def __init__(
        self,
        modules: Sequence[QueueModule],
        pinholes: ConversationBackend,
        inside: Sequence[Network],
        public_along: Callable[[Along], PublicAddress | None],
        trace: Trace,
        now: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        admitted: Callable[[Endpoint, int], None] = _unheard,
        may_map: Callable[[Endpoint], bool] = _may_map,
    ) -> None:
        self.public_along = public_along
        self.admitted = admitted
        self.may_map = may_map
        self._counters: Counter[str] = Counter()
        self._inside = tuple(inside)
        self._now = now
        self._paths: dict[str, Along] = {}  # the flow with the outside that an inside host used last
        self._sockets: dict[Endpoint, _Line] = {}  # of clients, that were seen here, and whose they are
        self._hosts: dict[str, bool] = {}  # whether they are inside
        self._next_look = now() + ADDRESSES
        self._journal = journal
        self._to_write, self._next_write = False, -math.inf
        self._write_timer: Any = None
        self._lines = [_Line(self, wanted, pinholes, trace, now) for wanted in modules]
        self._by_port = {port: line for line, wanted in zip(self._lines, modules, strict=True) for port in wanted.ports}
        if journal is not None:
            self._take_over(journal)

    def _take_over(self, journal: Journal) -> None:
        for line in self._lines:
            if line.recorded:
                found = [entry for entry in journal.found if entry.module == line.name]
                line.take_over(found, self._now())
                for entry in found:
                    if entry.read and entry.lease is not None:
                        self._sockets[entry.lease.target] = line
        if journal.found:
            conversations = sum(len(line.driver.conversations) for line in self._lines)
            log.info("packets.taken_over", conversations=conversations, records=len(journal.found))

    def drivers(self) -> Mapping[str, DatagramDriver]:
        """The drivers of the modules, by their names."""
        return {line.name: line.driver for line in self._lines}

    # --- packets ----------------------------------------------------------------------------------------------------

    def take(self, packet: QueuedPacket) -> None:
        """Handle one packet of the queue, now or when what it waits for has come."""
        self._counters["packets"] += 1
        try:
            parsed = parse(packet.get_payload())
        except NotWhole as error:
            self._pass(packet, error.reason)
            return
        side = self._side(parsed)
        if side is None or not parsed.payload:
            self._pass(packet, "other")
            return
        client, server = parsed.source, parsed.destination
        if side is Side.SERVER:
            client, server = server, client
        line = self._line_of(client, server)
        if line is None:
            self._pass(packet, "other")
            return
        self._remember(side, client, server, line, packet)
        way = parsed.source, parsed.destination
        line.driver.take(side, client, server, parsed.payload, _Item(packet, parsed), way)

    def _side(self, parsed: UdpPacket) -> Side | None:
        """Return which side sent the packet; None if it is not between inside and outside."""
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

    def _line_of(self, client: Endpoint, server: Endpoint) -> _Line | None:
        """Return the module that reads datagrams of these two: that of the server's port, or of what the client's
        socket has spoken before, or of a server inside that the outside finds at its port."""
        return self._by_port.get(server.port) or self._sockets.get(client) or self._by_port.get(client.port)

    def _remember(self, side: Side, client: Endpoint, server: Endpoint, line: _Line, packet: QueuedPacket) -> None:
        if len(self._sockets) >= MOST_REMEMBERED:
            self._paths.clear()
            self._sockets.clear()
        known = self._paths.get(client.host)
        if side is Side.CLIENT:
            mark, device = packet.mark, packet.outdev
        else:  # its mark is not that of the client's packets
            mark, device = known.mark if known is not None else 0, packet.indev
        if (
            known is None
            or known.source != client
            or known.destination != server
            or known.mark != mark
            or known.device != device
        ):
            self._paths[client.host] = Along("udp", client, server, mark, device)
        self._sockets[client] = line

    def _pass(self, packet: QueuedPacket, reason: str) -> None:
        self._counters[f"untouched_{reason}"] += 1
        go_on(packet)

    def send(self, held: HeldDatagram) -> None:
        """Send a packet on its way."""
        item: _Item = held.item
        if held.edited is not None:
            try:
                item.packet.set_payload(item.parsed.with_payload(held.edited))
                self._counters["edited"] += 1
            except ValueError:
                self._counters["untouched_grown"] += 1
        go_on(item.packet)

    def path(self, client: str, server: str | None) -> Along | None:
        """Return the flow with the outside that an inside host used last; if `server` is given and known, one with
        it."""
        along = self._paths.get(client)
        if server is None or (along is not None and along.destination.host == server):
            return along
        source = along.source if along is not None else Endpoint(client, 9)
        return Along("udp", source, Endpoint(server, along.destination.port if along is not None else 9))

    def knows(self, socket: Endpoint) -> bool:
        """Whether an inside socket has spoken a module's protocol here."""
        return socket in self._sockets

    # --- the journal ------------------------------------------------------------------------------------------------

    def write_soon(self) -> None:
        """Write what has changed into the journal: once for all packets of a turn, or of some milliseconds if many
        come. A call that begins and ends meanwhile is not written at all."""
        if self._journal is None or self._to_write:
            return
        self._to_write = True
        loop = gevent.get_hub().loop
        wait = self._next_write - self._now()
        if wait > 0:
            self._write_timer = loop.timer(wait)
            self._write_timer.start(self._write)
        else:
            loop.run_callback(self._write)

    def _write(self) -> None:
        self._to_write = False
        if self._write_timer is not None:
            self._write_timer.close()
            self._write_timer = None
        if self._journal is not None:
            begun = self._now()
            for line in self._lines:
                if line.recorded:
                    self._journal.put(line.entries())
            ended = self._now()
            self._next_write = ended + max(WRITE, WRITE_SHARE * (ended - begun))

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Keep the modules' time, and check this host's addresses. Does not return."""
        for line in self._lines:
            gevent.spawn(line.driver.run)
        while True:
            gevent.sleep(max(0.0, self._next_look - self._now()))
            self._look_when_due()

    def tick(self) -> None:
        """Do what is due."""
        for line in self._lines:
            line.driver.tick()
        self._look_when_due()

    def _look_when_due(self) -> None:
        now = self._now()
        if self._next_look <= now:
            self._next_look = now + ADDRESSES
            for line in self._lines:
                self._look_at_addresses(line, now)

    def _look_at_addresses(self, line: _Line, now: float) -> None:
        """Open conversations again that listen at an address which no longer faces their server."""
        conversations = line.driver.conversations
        for ref, server in list(line.servers.items()):
            if ref not in conversations:
                del line.servers[ref]
                line.facing.pop(ref, None)
                continue
            lease = conversations.lease(ref)
            along = self.path(lease.client, server) if lease is not None else None
            public = self.public_along(along) if along is not None else None
            if lease is None or public is None or lease.public == lease.target:
                continue
            if line.facing.setdefault(ref, public.local) != public.local:
                log.warning("pinhole.moved", old=str(lease.public), address=public.local, target=str(lease.target))
                line.driver.tell(Moved(ref, now))

    def look_at_traffic(self) -> None:
        """Tell the modules what the kernel has counted. Waits for the broker."""
        for line in self._lines:
            line.driver.look_at_traffic()

    def stop(self) -> None:
        """Send everything on as it is."""
        for line in self._lines:
            line.driver.flush()

    # --- what is shown ----------------------------------------------------------------------------------------------

    def counters(self) -> Counter[str]:
        """Counts since the start: "packets", "edited", "held", "overdue", and "untouched_" with the reason."""
        found = Counter(self._counters)
        for line in self._lines:
            for name, number in line.driver.counters.items():
                found["untouched_crowded" if name == "crowded" else name] += number
        return found

    def status(self) -> dict[str, Any]:
        """Return the counts and the current numbers as `algate status --json` shows them."""
        waiting = sum(len(line.driver) for line in self._lines)
        conversations = sum(len(line.driver.conversations) for line in self._lines)
        return {"waiting": waiting, "conversations": conversations, **self.counters()}

    def samples(self) -> list[Sample]:
        """Return the counts and the current numbers for the metrics."""
        status = self.status()
        values: dict[Key, float] = {
            ("algate_packets_waiting",): status["waiting"],
            ("algate_conversations",): status["conversations"],
        }
        for name, number in self.counters().items():
            _, untouched, reason = name.partition("untouched_")
            values[("algate_packets_untouched_total", reason) if untouched else (_METRICS[name],)] = number
        return list(values.items())


_METRICS = {
    "packets": "algate_packets_total",
    "edited": "algate_packets_edited_total",
    "held": "algate_packets_held_total",
    "overdue": "algate_packets_overdue_total",
}

"""`AnnounceModule`: announces of BitTorrent clients to trackers over UDP (BEP 15, 41), of all inside clients.

As over HTTP (`alg.bittorrent.http`), but for two things. What is edited are two bytes, or six, in place: no datagram
changes its length. And an announce counts only with a connection id that this tracker has given to this socket before,
which nobody has who cannot read the tracker's answer.

Codes of notes: bittorrent.unproven, bittorrent.many, bittorrent.refused, bittorrent.closed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from alg.address import Endpoint, canonical, is_private
from alg.api import Edit, Note, Opened, Refused, Side, Tick
from alg.bittorrent.announce import Announce, read_udp
from alg.bittorrent.listeners import ClientPort, ClientPorts, Keeper, PortState, counts_until
from alg.bittorrent.options import BittorrentOptions
from alg.datagrams import Datagram, DatagramCommand, DatagramContext, DatagramEvent, Entry, Moved, Release

PORT, ADDRESS = "bittorrent.port", "bittorrent.address"
ANSWER_WITHIN = 2.0  # seconds that an announce waits for its port
CONNECTED_FOR = 130.0  # seconds that a connection id counts: trackers take it for two minutes (BEP 15)
MOST_CONNECTIONS = 16384  # of sockets with trackers
MOST_ASKED = 4096  # announces whose answers are awaited
MOST_WAITING = 1024  # announces that wait for their ports
MOST_OF_CLIENT = 512  # of each of these: a client that has more loses its own, and nobody else's
NOTE_AGAIN = 60.0  # seconds before the same is said again of a client
_MOST_NOTED = 4096
_MAGIC = b"\0\0\x04\x17\x27\x10\x19\x80"
_CONNECT, _ANNOUNCE = b"\0\0\0\0", b"\0\0\0\1"
_LEAST_REQUEST, _LEAST_CONNECTED, _LEAST_ANNOUNCED = 16, 16, 20  # bytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Pair = tuple[Endpoint, Endpoint]  # a client's socket, and a tracker's


class _Shares(Generic[K, V]):
    """What clients have, the oldest first: at most `most` of all of them, and MOST_OF_CLIENT of each. Whoever has more
    loses the oldest of what it has itself."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: OrderedDict[tuple[str, K], V] = OrderedDict()
        self._of_client: dict[str, OrderedDict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def get(self, client: str, key: K) -> V | None:
        """Return what a client has by this key."""
        return self._all.get((client, key))

    def put(self, client: str, key: K, value: V) -> None:
        """Store a value as the client's newest one."""
        self.pop(client, key)
        own = self._of_client.get(client, OrderedDict[K, None]())
        if len(own) >= MOST_OF_CLIENT:
            self.pop(client, next(iter(own)))
        elif len(self._all) >= self._most:
            self.pop(*next(iter(self._all)))
        self._all[client, key] = value
        self._of_client.setdefault(client, OrderedDict())[key] = None

    def pop(self, client: str, key: K) -> V | None:
        """Return what a client has by this key, and forget it."""
        value = self._all.pop((client, key), None)
        if value is not None:
            own = self._of_client[client]
            del own[key]
            if not own:
                del self._of_client[client]
        return value


@dataclass(slots=True)
class TrackerConnection:
    """The connection id that a client's socket has from a tracker (BEP 15). `asked`: the transaction of a connect that
    is not answered yet; `id`: the id that the tracker gave, valid until `ends`."""

    asked: bytes = b""
    id: bytes = b""
    ends: float = 0.0


@dataclass(slots=True)
class HeldUdpAnnounce:
    """An announce that waits for its port. `due`: the time at which it is sent on without one."""

    packet: int
    announce: Announce
    listener: ClientPort
    due: float


class AnnounceModule:
    """All announces of the inside clients, or those of one SOCKS association, as `alg.datagrams.RecordedModule`."""

    api: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)
    Options: ClassVar[type[BittorrentOptions]] = BittorrentOptions
    recorded: ClassVar[bool] = True
    shown: ClassVar[bool] = False  # each datagram has a key and a peer's id, and most trackers' have nothing else

    def __init__(self, context: DatagramContext) -> None:
        options = context.options if isinstance(context.options, BittorrentOptions) else BittorrentOptions()
        self._keeper = Keeper(ClientPorts(), options.verify)
        self._connections: _Shares[Pair, TrackerConnection] = _Shares(MOST_CONNECTIONS)
        self._asked: _Shares[tuple[Pair, bytes], tuple[ClientPort, bytes]] = _Shares(MOST_ASKED)
        self._held: dict[int, HeldUdpAnnounce] = {}
        self._changed: dict[int, ClientPort] | None = {} if context.recorded else None
        self._gone: list[int] = []
        self._noted: dict[tuple[str, str], float] = {}

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        """See `alg.datagrams.DatagramModule.handle`."""
        match event:
            case Datagram(side=Side.CLIENT):
                return self._from_client(event)
            case Datagram(packet=packet):
                self._from_tracker(event)
                return [Release(packet)]
            case Opened(ref, public, now):
                return [*self._said(self._keeper.opened(ref, public, now), now), *self._decided(now)]
            case Refused(ref, rule, now):
                return [*self._said(self._keeper.refused(ref, rule, now), now), *self._decided(now)]
            case Moved(ref):
                self._gone.append(ref)
                return list(self._keeper.moved(ref))
            case Tick(now):
                return [*self._ticked(now), *self._decided(now)]
        return []

    def deadline(self) -> float | None:
        """See `alg.datagrams.DatagramModule.deadline`."""
        times = [held.due for held in self._held.values()]
        return min([*times, at] if (at := self._keeper.deadline()) is not None else times, default=None)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def _from_client(self, event: Datagram) -> list[DatagramCommand]:
        data, now = event.data, event.now
        pair = event.client, event.server
        if data[:8] == _MAGIC and data[8:12] == _CONNECT and len(data) >= _LEAST_REQUEST:
            self._connection(pair).asked = data[12:16]
            return [Release(event.packet)]
        announce = read_udp(data)
        known = self._connections.get(event.client.host, pair)
        if announce is None or not announce.opens or known is None or known.id != data[:8] or known.ends < now:
            return [Release(event.packet)]
        socket = Endpoint(event.client.host, announce.port)
        listener = self._keeper.listeners.get(socket, now)
        if announce.stopped:
            passed = Release(event.packet, _edits(announce, listener))
            if listener is None:
                return [passed]
            listener.stopped(announce.info_hash)
            self._remember(listener)
            return [passed, *self._ticked(now)]
        commands: list[DatagramCommand] = []
        if listener is None:
            listener, more = self._keeper.begin(socket, announce.info_hash, now)
            commands += self._said(more, now)
        if listener is None or not self._may_wait(event.client.host):
            return [*commands, Release(event.packet)]
        listener.announced((announce.info_hash, str(event.server)), counts_until(now, None))
        self._remember(listener)
        self._asked.put(event.client.host, (pair, data[12:16]), (listener, announce.info_hash))
        if not listener.is_waited_for:
            return [*commands, Release(event.packet, _edits(announce, listener))]
        self._held[event.packet] = HeldUdpAnnounce(event.packet, announce, listener, now + ANSWER_WITHIN)
        return commands

    def _from_tracker(self, event: Datagram) -> None:
        """Read an answer of a tracker: a connection id, or the time until the next announce."""
        data, now = event.data, event.now
        pair = event.client, event.server
        if data[:4] == _CONNECT and len(data) >= _LEAST_CONNECTED:
            known = self._connections.get(event.client.host, pair)
            if known is not None and known.asked == data[4:8]:
                known.asked, known.id, known.ends = b"", data[8:16], now + CONNECTED_FOR
        elif data[:4] == _ANNOUNCE and len(data) >= _LEAST_ANNOUNCED:
            asked = self._asked.pop(event.client.host, (pair, data[4:8]))
            if asked is None:
                return
            listener, torrent = asked[0], (asked[1], str(event.server))
            if torrent in listener.torrents:
                listener.announced(torrent, counts_until(now, int.from_bytes(data[8:12])))
                self._remember(listener)

    def _connection(self, pair: Pair) -> TrackerConnection:
        client = pair[0].host
        known = self._connections.get(client, pair) or TrackerConnection()
        self._connections.put(client, pair, known)
        return known

    def _may_wait(self, client: str) -> bool:
        """Whether one more announce of a client may wait for its port."""
        if len(self._held) >= MOST_WAITING:
            return False
        return sum(held.listener.socket.host == client for held in self._held.values()) < MOST_OF_CLIENT

    # --- ports ------------------------------------------------------------------------------------------------------

    def _decided(self, now: float) -> list[DatagramCommand]:
        """Send on the announces whose ports are open, or will not be open in time."""
        commands: list[DatagramCommand] = []
        for held in [held for held in self._held.values() if not held.listener.is_waited_for or held.due <= now]:
            del self._held[held.packet]
            self._remember(held.listener)
            commands.append(Release(held.packet, _edits(held.announce, held.listener)))
        return commands

    def _ticked(self, now: float) -> list[DatagramCommand]:
        before = {listener.mapping for listener in self._keeper.kept()}
        commands = self._said(self._keeper.tick(now), now)
        kept = self._keeper.kept()
        self._gone += before - {listener.mapping for listener in kept}
        for listener in kept:
            self._remember(listener)
        return commands

    def _said(self, commands: Sequence[DatagramCommand], now: float) -> list[DatagramCommand]:
        """The commands, with each note once a minute for a client."""
        found: list[DatagramCommand] = []
        for command in commands:
            if isinstance(command, Note):
                key = command.code, command.detail
                if self._noted.get(key, now) > now:
                    continue
                if len(self._noted) >= _MOST_NOTED:
                    self._noted.clear()
                self._noted[key] = now + NOTE_AGAIN
            found.append(command)
        return found

    # --- the journal ------------------------------------------------------------------------------------------------

    def _remember(self, listener: ClientPort) -> None:
        if self._changed is not None and listener.state is PortState.OPEN:
            self._changed[listener.mapping] = listener

    def journal(self) -> Sequence[Entry]:
        """See `alg.datagrams.RecordedModule.journal`. Torrents are not recorded, only until when one is announced."""
        if self._changed is None:
            return ()
        entries = [Entry(str(ref), None, None) for ref in self._gone]
        gone = set(self._gone)
        for ref, listener in self._changed.items():
            if ref not in gone and listener.public is not None:
                known = [*listener.socket, *listener.public, listener.wanted_until(), listener.lasts]
                entries.append(Entry(str(ref), ref, json.dumps(known).encode()))
        self._changed, self._gone = {}, []
        return entries

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        """See `alg.datagrams.RecordedModule.restore`."""
        for entry in entries:
            if entry.ref is None or entry.record is None:
                continue
            try:
                host, port, public, public_port, until, lasts = json.loads(entry.record)
                listener = ClientPort(
                    Endpoint.of(host, port), now, now, PortState.OPEN, Endpoint.of(public, public_port)
                )
                listener.lasts = float(lasts)
                listener.announced((b"", ""), float(until))
            except (ValueError, TypeError):
                continue
            self._keeper.restored(listener, entry.ref)


def _edits(announce: Announce, listener: ClientPort | None) -> tuple[Edit, ...]:
    if listener is None or listener.state is not PortState.OPEN or listener.public is None:
        return ()
    client, public, edits = listener.socket.host, listener.public, []
    own = canonical(client)
    if announce.address == client != public.host and own.version == 4 and is_private(own):
        edits.append(Edit(*announce.address_at, canonical(public.host).packed, ADDRESS))
    if public.port != announce.port:
        edits.append(Edit(*announce.port_at, public.port.to_bytes(2), PORT))
    return tuple(edits)

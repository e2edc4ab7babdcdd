"""Ports at which clients listen for peers: each is proven, opened for everybody, kept while torrents are announced
there, and closed.

`ClientPorts` is a table that several modules of one process share, because each announce may come over a connection of
its own. A `Keeper` is a module's part in it: whoever finds a port that nobody keeps begins to keep it, and tells the
others by the table that it is still alive. Times are seconds of the events' clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from alg.address import Endpoint
from alg.api import Board, ClosePinhole, Note, OpenMapping, Probe, UpdateMapping

REASON = "map.bittorrent"
MOST_PORTS = 4  # of a client that are proven or open
MOST_FAILED = 16  # of a client whose proof has failed and is remembered
MOST = 4096  # ports of all clients
MOST_TORRENTS = 4096  # of a port that are told apart
WITHOUT_INTERVAL = 2700.0  # seconds that an announce counts if the tracker does not say when the next one is due
LEAST_INTERVAL, MOST_INTERVAL = 60, 7200  # seconds of a tracker's interval that are believed
LONGEST = 7200.0  # seconds of a mapping (`alg.api.OpenMapping`)
BEAT = 5.0  # seconds between two looks of a keeper at what it keeps
PINNED = 2 * BEAT  # seconds for which keepers of other processes can read that a torrent has stopped
DEAD = 15.0  # seconds without such a look, after which another one may keep the port
PROOF_WITHIN = 8.0  # seconds for proof and opening together
FAILED_FOR = 30.0  # seconds in which a port is not proven again
LATER = 60.0  # seconds by which a mapping has to end too early or too late for the broker to be told

_GREETING = b"\x13BitTorrent protocol"
_RESERVED = (len(_GREETING), len(_GREETING) + 8)
_PEER_ID = b"-AG0100-" + bytes(12)

KeeperCommand = Probe | OpenMapping | UpdateMapping | ClosePinhole | Note
Torrent = tuple[bytes, str]  # an info hash, and the tracker that was told of it


class PortState(Enum):
    """How far the proof and the opening of a port have come."""

    PROVING = "proving"
    OPENING = "opening"
    OPEN = "open"
    FAILED = "failed"


@dataclass(slots=True)
class ClientPort:
    """One port of a client. `torrents`: until when each announce counts. `public`: once it is open.

    `due`: when proof and opening have taken too long, or the failure is forgotten. `lasts`: when the mapping ends if
    the broker is told nothing more. `seen`: when its keeper has last looked. `probe`, `mapping`: the keeper's numbers.
    """

    socket: Endpoint
    due: float
    seen: float
    state: PortState = PortState.PROVING
    public: Endpoint | None = None
    lasts: float = 0.0
    probe: int = 0
    mapping: int = 0
    torrents: dict[Torrent, float] = field(default_factory=dict)

    @property
    def is_waited_for(self) -> bool:
        """Whether an announce has to wait for what comes of it."""
        return self.state in (PortState.PROVING, PortState.OPENING)

    def announced(self, torrent: Torrent, until: float) -> None:
        """An announce counts until then."""
        if torrent not in self.torrents and len(self.torrents) >= MOST_TORRENTS:
            torrent = (b"", "")  # all further ones together
            until = max(until, self.torrents.get(torrent, 0.0))
        self.torrents[torrent] = until

    def stopped(self, info_hash: bytes) -> None:
        """Note that the client no longer shares this torrent, whichever tracker it has told so."""
        for torrent in [torrent for torrent in self.torrents if torrent[0] == info_hash]:
            del self.torrents[torrent]

    def wanted_until(self) -> float:
        """Return the time until which at least one announce counts; 0: none counts."""
        return max(self.torrents.values(), default=0.0)


def counts_until(now: float, interval: int | None) -> float:
    """Return the time until which an announce counts. `interval`: the seconds that the tracker's answer gives until the
    next announce; None: not known."""
    if interval is None:
        return now + WITHOUT_INTERVAL
    return now + min(max(interval, LEAST_INTERVAL), MOST_INTERVAL) * 1.5 + 120


class ClientPorts:
    """The ports of all clients that are proven, open, or have failed a short while ago."""

    def __init__(self) -> None:
        self._by_socket: dict[Endpoint, ClientPort] = {}
        self._of_client: dict[str, list[ClientPort]] = {}

    def get(self, socket: Endpoint, now: float) -> ClientPort | None:
        """Return what is known of a port, if that is still true."""
        found = self._by_socket.get(socket)
        if found is not None and self._is_over(found, now):
            self.forget(found)
            return None
        return found

    def add(self, socket: Endpoint, now: float) -> ClientPort | None:
        """Begin with a port that is not known. Returns None if the client has too many."""
        of_client = self._of_client.setdefault(socket.host, [])
        for listener in [listener for listener in of_client if self._is_over(listener, now)]:
            self.forget(listener)
        failed = sum(listener.state is PortState.FAILED for listener in of_client)
        if len(of_client) - failed >= MOST_PORTS or failed >= MOST_FAILED or len(self._by_socket) >= MOST:
            return None
        made = self._by_socket[socket] = ClientPort(socket, now + PROOF_WITHIN, now)
        self._of_client.setdefault(socket.host, []).append(made)
        return made

    def put(self, listener: ClientPort) -> None:
        """Add a port that a predecessor of this process has opened."""
        self._by_socket[listener.socket] = listener
        self._of_client.setdefault(listener.socket.host, []).append(listener)

    def has(self, listener: ClientPort) -> bool:
        """Whether this object is in the table (and not only one with the same socket)."""
        return self._by_socket.get(listener.socket) is listener

    def forget(self, listener: ClientPort) -> None:
        """Remove it, if it is there."""
        if not self.has(listener):
            return
        del self._by_socket[listener.socket]
        of_client = self._of_client[listener.socket.host]
        of_client.remove(listener)
        if not of_client:
            del self._of_client[listener.socket.host]

    def _is_over(self, listener: ClientPort, now: float) -> bool:
        if listener.state is PortState.OPEN:  # all torrents have stopped: its keeper closes it with its next look
            return not listener.torrents or listener.seen + DEAD < now
        return listener.due < now


class Keeper:
    """One module's part: proves and opens ports of clients, and keeps them. Methods return commands for its driver."""

    def __init__(self, listeners: ClientPorts, verify: str, board: Board | None = None) -> None:
        self.listeners = listeners
        self._board = board
        self._handshake = verify == "handshake"
        self._kept: dict[int, ClientPort] = {}  # by the number of a probe or a mapping
        self._ref = 0
        self._beat_at = 0.0

    def begin(self, socket: Endpoint, info_hash: bytes, now: float) -> tuple[ClientPort | None, list[KeeperCommand]]:
        """Begin to prove a port that has no keeper yet. Returns None in place of the port if the client has too
        many."""
        listener = self.listeners.add(socket, now)
        if listener is None:
            return None, [Note("bittorrent.many", f"{socket.host} has as many ports as it may have")]
        listener.probe = self._next(listener)
        if self._handshake:
            expect = _GREETING + bytes(8) + info_hash
            send = expect + _PEER_ID
            return listener, [Probe(listener.probe, socket, send, expect, _RESERVED)]
        return listener, [Probe(listener.probe, socket, b"", b"")]

    def stopped(self, socket: Endpoint, info_hash: bytes, now: float) -> list[KeeperCommand]:
        """Note that a client no longer shares a torrent. Another process may be the one that keeps the port, so it is
        left a word."""
        listener = self.listeners.get(socket, now)
        if listener is not None:
            listener.stopped(info_hash)
        if self._board is not None:
            self._board.pin(_stopped_word(socket, info_hash), PINNED)
        return self.tick(now)

    def restored(self, listener: ClientPort, ref: int) -> None:
        """Keep what a predecessor has opened under this number."""
        listener.mapping = ref
        self._ref = max(self._ref, ref)
        self._kept[ref] = listener
        self.listeners.put(listener)

    def opened(self, ref: int, public: Endpoint, now: float) -> Sequence[KeeperCommand]:
        """A port has been proven, or opened."""
        listener = self._kept.get(ref)
        if listener is None or not self.listeners.has(listener):
            self._kept.pop(ref, None)
            return [ClosePinhole(ref)]
        listener.seen = now
        if ref == listener.probe:
            del self._kept[ref]
            listener.state, listener.probe = PortState.OPENING, 0
            listener.mapping = self._next(listener)
            ends = max(listener.wanted_until(), now + PROOF_WITHIN)
            ttl = min(ends - now, LONGEST)
            listener.lasts = now + ttl
            own = listener.socket.port
            return [OpenMapping(listener.mapping, listener.socket, ("tcp", "udp"), None, ttl, REASON, own)]
        listener.state = PortState.OPEN
        # In mode "observe" there is no public port: nothing would have to be edited.
        listener.public = public if public.port else Endpoint(public.host, listener.socket.port)
        return []

    def refused(self, ref: int, rule: str, now: float) -> Sequence[KeeperCommand]:
        """A port was not proven, or is not open (any more)."""
        listener = self._kept.pop(ref, None)
        if listener is None:
            return []
        if listener.state is PortState.OPEN:
            self.listeners.forget(listener)
            return [Note("bittorrent.closed", f"{listener.socket}: {rule}")]
        listener.state, listener.due = PortState.FAILED, now + FAILED_FOR
        if rule == "probe":
            return [Note("bittorrent.unproven", f"no BitTorrent client answers at {listener.socket}")]
        return [Note("bittorrent.refused", f"{listener.socket}: {rule}")]

    def tick(self, now: float) -> list[KeeperCommand]:
        """Close the ports that no announce needs any longer, and prolong the mappings of all others."""
        self._beat_at = now + BEAT
        commands: list[KeeperCommand] = []
        for ref, listener in list(self._kept.items()):
            listener.seen = now
            if self._board is not None:
                for info_hash in {torrent[0] for torrent in listener.torrents}:
                    if self._board.pinned(_stopped_word(listener.socket, info_hash)):
                        listener.stopped(info_hash)
            if not self.listeners.has(listener):  # given up, or somebody else's
                del self._kept[ref]
                commands.append(ClosePinhole(ref))
            elif listener.state is not PortState.OPEN:
                continue
            elif (until := listener.wanted_until()) <= now:
                del self._kept[ref]
                self.listeners.forget(listener)
                commands.append(ClosePinhole(ref))
            else:
                until = min(until, now + LONGEST)
                if abs(until - listener.lasts) > LATER or listener.lasts < min(until, now + 2 * BEAT):
                    listener.lasts = until
                    commands.append(UpdateMapping(ref, None, until - now))
        return commands

    def moved(self, ref: int) -> list[KeeperCommand]:
        """The public address of a mapping is not one of this router's any more: the next announce opens it anew."""
        listener = self._kept.pop(ref, None)
        if listener is not None:
            self.listeners.forget(listener)
        return [ClosePinhole(ref)]

    def deadline(self) -> float | None:
        """Return the time at which `tick` has something to do."""
        return self._beat_at if self._kept else None

    def kept(self) -> list[ClientPort]:
        """Return the open ports that this keeper keeps."""
        return [listener for listener in self._kept.values() if listener.state is PortState.OPEN]

    def number(self) -> int:
        """Return a new number for a question to the driver."""
        self._ref += 1
        return self._ref

    def _next(self, listener: ClientPort) -> int:
        self._kept[ref := self.number()] = listener
        return ref


def _stopped_word(socket: Endpoint, info_hash: bytes) -> str:
    return f"bittorrent {socket} {info_hash.hex()}"

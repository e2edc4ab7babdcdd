"""`BittorrentModule`: announces of BitTorrent clients to trackers over HTTP, one connection each.

An announce says at which port a client listens. That port gets a public one before the announce goes on: the same
number wherever that is free, so that nothing has to be edited; else the announce names the other one. Nothing opens
before the client has shown that it listens there for that torrent. Answers of trackers pass as they come; of them only
the interval is read.

Rules that end the flow's right to pinholes; from then on bytes are relayed unread:

    bittorrent.browser   a request has a header that browsers add
    bittorrent.not-http  the client does not begin as HTTP, or says something that has a body
    bittorrent.stalled   a head that does not go on, or is too long

Codes of notes beside these: bittorrent.unproven, bittorrent.many, bittorrent.refused, bittorrent.late (the announce
goes as it came), bittorrent.closed, bittorrent.published (a tracker inside: not read).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from alg.address import Endpoint, canonical, is_private
from alg.api import (
    Bypass,
    Closed,
    Command,
    Deliver,
    Edit,
    Event,
    FindSocket,
    FlowContext,
    Mode,
    Note,
    Opened,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
)
from alg.bittorrent.announce import (
    LONGEST_HEAD,
    Announce,
    begins_as_request,
    conceal,
    has_body,
    is_of_browser,
    read_http,
)
from alg.bittorrent.bencode import IntervalSearch
from alg.bittorrent.listeners import ClientPort, ClientPorts, Keeper, PortState, Torrent, counts_until
from alg.bittorrent.options import BittorrentOptions
from alg.bittorrent.udp import AnnounceModule
from alg.datagrams import DatagramModule
from alg.output import Output
from alg.text.header import find_empty_line

ANSWER_WITHIN = 2.0  # seconds that an announce waits for its port
HEAD_WITHIN = 10.0  # seconds for the rest of a head
LOOK_AGAIN = 0.05  # seconds between two looks at what another connection has begun
MOST_BEHIND = 65536  # bytes behind an announce that waits
BEGINNING = 128  # bytes by which a request is told before its head is there
MOST_ASKED = 256  # announces whose answers are looked at; those beyond count as long as without an answer
MOST_ANSWER, MOST_PIECES = 16384, 1024  # bytes and pieces of an answer in which its interval is looked for
PORT, ADDRESS = "bittorrent.port", "bittorrent.address"
_DICTIONARY = ord("d")  # with which an answer in bencoding begins


@dataclass(slots=True)
class HeldAnnounce:
    """An announce that waits for its port. `due`: the time at which it is sent on without one. `asked`: the number of
    the question for the port, if another process has opened it; `public`: the answer."""

    head: bytes
    announce: Announce
    listener: ClientPort | None
    due: float
    asked: int = 0
    public: Endpoint | None = None

    @property
    def is_waiting(self) -> bool:
        return self.asked > 0 or (self.listener is not None and self.listener.is_waited_for)


class TrackerAnswer:
    """The answer to an announce, as far as it has come."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._pieces = 0
        self._body = 0  # where the body begins; 0: it has not come yet
        self._search = IntervalSearch()

    @property
    def is_too_long(self) -> bool:
        """Whether it is not worth reading any more of it."""
        return len(self._data) > MOST_ANSWER or self._pieces > MOST_PIECES

    def add(self, data: bytes) -> int | None:
        """Add bytes that have come, and return the interval that the tracker names; None: it is not there, or not
        yet."""
        self._data += data
        self._pieces += 1
        self._body = self._body or self._find_body()
        return self._search.look(self._data, self._body) if self._body else None

    def _find_body(self) -> int:
        """If it comes in chunks, that is the beginning of the first one, in which is what can be read."""
        empty = find_empty_line(self._data, 0)
        if empty is None or len(self._data) == empty[1]:
            return 0
        if self._data[empty[1]] == _DICTIONARY:
            return empty[1]
        size = self._data.find(b"\r\n", empty[1])
        return size + 2 if size >= 0 else 0


class BittorrentModule:
    """One connection between a client and a tracker, as `alg.api.OutlivingModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (6969, 2710, 1337)
    default_mode: ClassVar[Mode] = Mode.OFF
    kinds: ClassVar[tuple[str, ...]] = ("mapping",)
    Options: ClassVar[type[BittorrentOptions]] = BittorrentOptions
    datagrams: ClassVar[type[DatagramModule]] = AnnounceModule
    shown: ClassVar[bool] = True
    conceal = staticmethod(conceal)
    most_held: ClassVar[int] = LONGEST_HEAD + MOST_BEHIND
    outlives: ClassVar[bool] = True

    def __init__(self, context: FlowContext) -> None:
        options = context.options if isinstance(context.options, BittorrentOptions) else BittorrentOptions()
        self._client = str(canonical(context.client.host))
        self._tracker = str(context.server)
        self._published = context.inside is not Side.CLIENT
        listeners = cast(ClientPorts, context.shared.setdefault("listeners", ClientPorts()))
        self._keeper = Keeper(listeners, options.verify, context.board)
        self._buffer = bytearray()
        self._searched = 0  # bytes in which there is no end of a head
        self._since = 0.0  # when the client has last said something
        self._held: HeldAnnounce | None = None
        self._asked: deque[tuple[ClientPort, Torrent]] = deque()  # announces whose answers are looked at
        self._answer = TrackerAnswer()
        self._now = 0.0
        self._out = Output()

    def deadline(self) -> float | None:
        """See `AlgModule.deadline`."""
        times = [at] if (at := self._keeper.deadline()) is not None else []
        if self._held is not None:
            times.append(min(self._held.due, self._now + LOOK_AGAIN))
        elif self._buffer and not self._out.over:
            times.append(self._since + HEAD_WITHIN)
        return min(times, default=None)

    def lives_on(self) -> bool:
        """See `OutlivingModule.lives_on`."""
        return bool(self._keeper.kept())

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        self._now = event.now
        match event:
            case Received(Side.CLIENT, data, now):
                self._buffer += data
                self._since = now
                if self._published:
                    self._out.note("bittorrent.published", "trackers inside are not read")
                    self._leave()
            case Received(Side.SERVER, data, _):
                self._out.add(Deliver(Side.CLIENT, data))
                self._answered(data)
            case Closed(side, _):
                self._out.close(side)
            case Opened(ref, public) if self._held is not None and ref == self._held.asked:
                self._held.asked, self._held.public = 0, public
            case Refused(ref) if self._held is not None and ref == self._held.asked:
                self._held.asked = 0
            case Opened(ref, public, now):
                self._do(self._keeper.opened(ref, public, now))
            case Refused(ref, rule, now):
                self._do(self._keeper.refused(ref, rule, now))
            case Tick(now):
                self._tick(now)
        if not self._out.over:
            self._go_on()
        for side in Side:
            self._end(side)
        return self._out.take()

    def _do(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Note):
                self._out.note(command.code, command.detail)
            else:
                self._out.add(command)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take requests that are whole, up to the next announce that has to wait."""
        while not self._out.over:
            if self._held is not None:
                if self._held.is_waiting:
                    return
                self._release()
            elif not self._buffer or not self._take():
                return

    def _take(self) -> bool:
        """Take one request. Returns whether there was one."""
        if self._searched < BEGINNING and begins_as_request(bytes(self._buffer[:BEGINNING])) is False:
            self._give_up("bittorrent.not-http", "the client does not begin as HTTP")
            return False
        empty = find_empty_line(self._buffer, max(0, self._searched - 2))
        if empty is None or empty[1] > LONGEST_HEAD:
            self._searched = len(self._buffer)
            if self._searched > LONGEST_HEAD:
                self._give_up("bittorrent.stalled", "a head is too long")
            return False
        head = bytes(self._buffer[: empty[1]])
        if not begins_as_request(head):
            self._give_up("bittorrent.not-http", "the client does not begin as HTTP")
        elif is_of_browser(head):
            self._give_up("bittorrent.browser", f"a browser asks {self._tracker}")
        elif has_body(head):
            self._give_up("bittorrent.not-http", "a request has a body")
        else:
            del self._buffer[: empty[1]]
            self._searched = 0
            self._requested(head)
            return True
        return False

    def _requested(self, head: bytes) -> None:
        announce = read_http(head)
        if announce is None or not announce.opens:
            self._out.add(Deliver(Side.SERVER, head))
            return
        socket = Endpoint(self._client, announce.port)
        listener = self._keeper.listeners.get(socket, self._now)
        if announce.stopped:
            held = self._held = HeldAnnounce(head, announce, listener, self._now + ANSWER_WITHIN)
            if listener is None:  # what another process has opened, the tracker knows by its public port
                held.asked = self._keeper.number()
                self._out.add(FindSocket(held.asked, socket))
            return
        if listener is None:
            listener, commands = self._keeper.begin(socket, announce.info_hash, self._now)
            self._do(commands)
        if listener is None:
            self._out.add(Deliver(Side.SERVER, head))
            return
        torrent = announce.info_hash, self._tracker
        listener.announced(torrent, counts_until(self._now, None))
        if not self._asked:
            self._answer = TrackerAnswer()
        if len(self._asked) < MOST_ASKED:
            self._asked.append((listener, torrent))
        self._held = HeldAnnounce(head, announce, listener, self._now + ANSWER_WITHIN)

    def _release(self) -> None:
        """Send the announce on, with its public port if it has one."""
        held = self._held
        if held is None:
            return
        self._held = None
        listener, announce = held.listener, held.announce
        public = listener.public if listener is not None and listener.state is PortState.OPEN else held.public
        self._out.add(Deliver(Side.SERVER, held.head, self._edits(announce, public)))
        if announce.stopped:
            self._do(self._keeper.stopped(Endpoint(self._client, announce.port), announce.info_hash, self._now))

    def _edits(self, announce: Announce, public: Endpoint | None) -> tuple[Edit, ...]:
        if public is None or not public.port:
            return ()
        edits = []
        if public.port != announce.port:
            edits.append(Edit(*announce.port_at, str(public.port).encode(), PORT))
        if announce.address == self._client != public.host and is_private(canonical(self._client)):
            edits.append(Edit(*announce.address_at, public.host.encode(), ADDRESS))
        return tuple(sorted(edits))

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, data: bytes) -> None:
        """Look for the interval in the answer to the first announce that has none."""
        if not self._asked or self._out.over:
            return
        if (interval := self._answer.add(data)) is not None:
            listener, torrent = self._asked.popleft()
            if torrent in listener.torrents:
                listener.announced(torrent, counts_until(self._now, interval))
            self._answer = TrackerAnswer()
        elif self._answer.is_too_long:
            self._asked.clear()
            self._answer = TrackerAnswer()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if (at := self._keeper.deadline()) is not None and at <= now:
            self._do(self._keeper.tick(now))
        if self._held is not None and self._held.due <= now:
            if self._held.is_waiting:
                self._out.note("bittorrent.late", "an announce goes as it came: its port is not open yet")
            self._release()
        elif self._held is None and self._buffer and not self._out.over and self._since + HEAD_WITHIN <= now:
            self._give_up("bittorrent.stalled", "a head does not go on")

    def _end(self, side: Side) -> None:
        if not self._out.is_to_end(side) or (side is Side.CLIENT and self._held is not None):
            return
        if side is Side.CLIENT and self._buffer:
            self._out.add(Deliver(Side.SERVER, bytes(self._buffer)))
            self._buffer.clear()
        self._out.end(side)

    def _give_up(self, rule: str, detail: str) -> None:
        self._out.add(Note(rule, detail), Revoke(rule))
        self._leave()

    def _leave(self) -> None:
        """Deliver all bytes that are held, and stop reading."""
        self._out.over = True
        self._release()
        if self._buffer:
            self._out.add(Deliver(Side.SERVER, bytes(self._buffer)))
            self._buffer.clear()
        for side in Side:
            self._end(side)
        self._out.add(Bypass())

"""The data path: two sockets joined in callbacks, without a greenlet.

Each direction is a `Half`. A few bytes are copied, because recv and send are cheaper than two splices. More bytes go
from socket to pipe to socket by splice(2) and are never seen. A half reads only while it holds nothing, so a full sink
stops the reading (backpressure). EAGAIN on reading means that the source is empty, or that an urgent byte comes next,
which recv passes and splice does not (it says EAGAIN, or 0 as at the end): so where splice returns nothing at once, the
next read is by recv. Everything here runs in the hub; it never blocks, and never raises out of a callback.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable
from functools import partial
from socket import SHUT_WR
from time import monotonic, perf_counter

from gevent import get_hub

from gateway.net.relay.connection import (
    RelaySocket,
    close_by_reset,
    has_urgent,
    local_hosts,
    narrow,
    take,
    unacknowledged,
)
from gateway.net.relay.half import (
    FIRST,
    FRESH,
    LEAST,
    URGENT_LONG,
    Half,
    Legacy,
    Reason,
    RelayResult,
    SideName,
    bulk_after,
)
from gateway.net.relay.pipes import PIPE_SIZE, PipePool
from gateway.net.relay.poller import BROKEN, ENDED, GONE, READ, UNWATCHED, WRITE, Poller, Watch, Watches
from gateway.net.relay.wheel import Wheel, WheelEntry
from gateway.policy.pace import Pace

FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
ENOUGH = 64 * 1024  # a shorter read most likely emptied the source: epoll will tell when there is more
COPY_SIZE = 16 * 1024  # a side that sends more at once is spliced from then on
FEW = 4 * 1024  # a side that sends less is copied again
RESET_GRACE = 5.0  # seconds without progress in delivering what came before a reset, until the reset overtakes it


class Relay:
    """What the flows of a process share: pipes, a timer wheel, limits. One for each worker, made in its hub's
    thread."""

    def __init__(self, idle_timeout: float, half_close_timeout: float, pipe_size: int = PIPE_SIZE) -> None:
        """`idle_timeout`: seconds without a byte in either direction after which a flow is reset; `half_close_timeout`:
        the same after one side has closed its direction."""
        self.idle_timeout = idle_timeout
        self.half_close_timeout = half_close_timeout
        self.live: set[RelayHandle] = set()
        self.pool = PipePool(pipe_size)
        self.wheel = Wheel()
        self.poller = Poller()

    def start(
        self,
        left: RelaySocket,
        right: RelaySocket,
        on_done: Callable[[RelayResult], None],
        up: Pace | None = None,
        down: Pace | None = None,
        *,
        watches: Watches = UNWATCHED,
        legacy: Legacy = FRESH,
    ) -> RelayHandle:
        """Join two connected TCP (or Unix stream) sockets until both have closed.

        Takes the sockets over: the objects passed in are detached and must not be used afterwards, and the relay closes
        the connections. `on_done` is called once, from the hub, and so must not block. `up`, `down`: rate limiters for
        reading from left and from right; they may be shared. `watches`: those of left and right, if they are in the
        poller already. `legacy`: what an earlier carrier has left to do. Raises ValueError for a closed socket.
        """
        if left.fileno() < 0 or right.fileno() < 0:
            raise ValueError("a closed socket cannot be relayed")
        return RelayHandle(self, take(left), take(right), on_done, up, down, watches, legacy)

    def close(self) -> None:
        """Abort every live flow by a reset, and free what they shared. Must not be used afterwards."""
        for handle in tuple(self.live):
            handle.abort(reset=True)
        self.pool.close()
        self.poller.close()


class RelayHandle:
    """A flow being relayed."""

    __slots__ = (
        "_active",
        "_broken",
        "_down",
        "_entry",
        "_left",
        "_left_watch",
        "_on_done",
        "_progress",
        "_relay",
        "_right",
        "_right_watch",
        "_up",
    )

    def __init__(
        self,
        relay: Relay,
        left: _socket.socket,
        right: _socket.socket,
        on_done: Callable[[RelayResult], None],
        up: Pace | None,
        down: Pace | None,
        watches: Watches,
        legacy: Legacy,
    ) -> None:
        self._relay = relay
        self._left = left
        self._right = right
        self._on_done: Callable[[RelayResult], None] | None = on_done
        self._up = Half(left, right, up)
        self._down = Half(right, left, down)
        self._broken: _socket.socket | None = None
        self._progress: tuple[int, int] | None = None  # of delivering what a broken side had sent
        self._active = monotonic()
        self._entry: WheelEntry | None = relay.wheel.add(self._active + relay.idle_timeout, self._check_idle)
        relay.live.add(self)
        self._left_watch = relay.poller.reading(left.fileno(), self._left_ready, watches[0])
        self._right_watch = relay.poller.reading(right.fileno(), self._right_ready, watches[1])
        if legacy is not FRESH:
            self._inherit(legacy)

    def _inherit(self, legacy: Legacy) -> None:
        """Continue where another carrier has stopped."""
        for half, head in ((self._up, legacy.up), (self._down, legacy.down)):
            if head.over:
                self._stop(half)
            elif head.rest:
                half.rest = head.rest
                half.reading, half.waiting = False, True
        if (self._up.over or self._down.over) and self._relay.half_close_timeout < self._relay.wheel.horizon:
            self._schedule(self._active + self._relay.half_close_timeout, self._check_idle)
        self._ask()
        if self._up.over and self._down.over and legacy.broken is None:
            self._finish("eof", reset=False)
        elif legacy.broken is not None:
            self._broke(self._left if legacy.broken == "left" else self._right, seen_reading=False)

    @property
    def up(self) -> int:
        """Bytes delivered from left to right so far."""
        return self._up.moved

    @property
    def down(self) -> int:
        """Bytes delivered from right to left so far."""
        return self._down.moved

    def readers(self) -> tuple[()]:
        """Nothing of it is read."""
        return ()

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(self._left, self._right)

    def belongs_to(self, owner: object) -> None:
        """Serve both sockets in the turn of a client (`Watch.owner`)."""
        self._left_watch.owner = self._right_watch.owner = owner

    def abort(self, reset: bool = True) -> None:
        """End the flow now, by a reset of both sides or by closing them; bytes in the gateway are lost. May be called
        again, and after the end."""
        self._finish("aborted", reset)

    # --- moving bytes -----------------------------------------------------------------------------------------------

    def _left_ready(self, events: int) -> None:
        self._ready(self._left_watch, self._up, self._down, events)

    def _right_ready(self, events: int) -> None:
        self._ready(self._right_watch, self._down, self._up, events)

    def _ready(self, watch: Watch, out: Half, into: Half, events: int) -> None:
        """Handle events of one side. `out` reads from it, `into` writes to it."""
        if into.waiting and events & (WRITE | GONE):
            self._pump(into)
        if out.reading:
            if events & (READ | GONE):
                self._pump(out, bool(events & ENDED))
        elif events & GONE and not into.waiting:
            # Told once. Without an error it is the hang-up of a connection that both sides closed in order: no news.
            watch.rest()
            if events & BROKEN:
                self._broke(out.source, seen_reading=False)

    def _pump(self, half: Half, last: bool = False) -> None:
        """Move what can be moved without waiting, within the budget. `last`: the source has ended behind what it has
        sent."""
        self._active = monotonic()
        before = half.moved
        if half.bulk or half.pipe is not None:
            self._splice(half)
        else:
            self._copy(half, last)
        now = monotonic()
        if half.bulk:
            half.bulk = bulk_after(half.bulk, half.moved - before, now - self._active)
        if now > self._active + URGENT_LONG and half.reading and has_urgent(half.source):
            narrow(half.source)
            due = half.charge_urgent(now)
            if due > now:
                self._pause(half, due)

    def _copy(self, half: Half, last: bool) -> None:
        limit, pace = COPY_SIZE, half.pace
        while True:
            data, half.rest = half.rest, b""
            if not data:
                if pace is not None and not (limit := min(COPY_SIZE, pace.allowance(self._active))):
                    self._pause(half, pace.due(self._active))
                    return
                try:
                    data = half.source.recv(limit)
                except BlockingIOError:
                    break
                except OSError:
                    self._broke(half.source, seen_reading=True)
                    return
                if not data:
                    self._ended(half)
                    return
                if pace is not None:
                    pace.spend(len(data))
            try:
                count = half.sink.send(data)
            except BlockingIOError:
                count = 0
            except OSError:
                self._broke(half.sink, seen_reading=False)
                return
            half.moved += count
            if count < len(data):
                half.rest = data[count:]
                self._wait_for_room(half)
                return
            if count == COPY_SIZE:  # spliced from now on, in the line of those that have much to do
                self._is_bulk(half, FIRST)
                break
            if not last:
                break
        self._read(half)

    def _splice(self, half: Half) -> None:
        pool, pace = self._relay.pool, half.pace
        pipe = half.pipe
        if pipe is None:
            pipe = half.pipe = pool.borrow()
            if pipe is None:  # no descriptors left: copying is slower, and right
                self._is_bulk(half, 0)
                self._read(half)
                return
        source, sink = half.source.fileno(), half.sink.fileno()
        most = half.bulk or LEAST
        if most > FIRST and self._relay.poller.has_company(perf_counter()):
            most = FIRST
        budget = most
        limit = size = min(pool.size, most)
        while True:
            if not pipe.held:
                if pace is not None and not (limit := min(size, pace.allowance(self._active))):
                    half.pipe = None
                    pool.give_back(pipe)
                    self._pause(half, pace.due(self._active))
                    return
                try:
                    pipe.held = count = os.splice(source, pipe.writer, limit, flags=FLAGS)
                except BlockingIOError:
                    if budget == most:
                        self._is_bulk(half, 0)
                    break
                except OSError:
                    self._broke(half.source, seen_reading=True)
                    return
                if not count:
                    self._is_bulk(half, 0)
                    break
                if pace is not None:
                    pace.spend(count)
                budget -= count
                if count < ENOUGH:
                    budget = 0
                    if count < FEW:
                        self._is_bulk(half, 0)
            try:
                count = os.splice(pipe.reader, sink, pipe.held, flags=FLAGS)
            except BlockingIOError:
                self._wait_for_room(half)
                return
            except OSError:
                self._broke(half.sink, seen_reading=False)
                return
            pipe.held -= count
            half.moved += count
            if not pipe.held and budget <= 0:
                break
        half.pipe = None
        pool.give_back(pipe)
        self._read(half)

    def _is_bulk(self, half: Half, bulk: int) -> None:
        """Splice so many bytes in one callback from now on, or copy (0). A side that has much to do lets others go
        first."""
        left, right = self._left_watch, self._right_watch
        half.bulk = bulk
        left.bulk = right.bulk = bool(self._up.bulk or self._down.bulk)
        left.heavy = right.heavy = True

    def _read(self, half: Half) -> None:
        if half.waiting or not half.reading:
            half.reading, half.waiting = True, False
            self._ask()

    def _wait_for_room(self, half: Half) -> None:
        """Stop reading until the sink has room. A reset is noticed all the same."""
        if not half.waiting:
            half.reading, half.waiting = False, True
            self._ask()

    def _pause(self, half: Half, due: float) -> None:
        """Stop reading this side until a time (monotonic)."""
        half.reading = half.waiting = False
        self._ask()
        half.pause = self._relay.wheel.add(due, partial(self._resume, half))

    def _resume(self, half: Half, _now: float) -> None:
        half.pause = None
        self._pump(half)

    def _ask(self) -> None:
        """Ask the poller for the events that both sides need now."""
        up, down = self._up, self._down
        self._left_watch.ask((READ if up.reading else 0) | (WRITE if down.waiting else 0))
        self._right_watch.ask((READ if down.reading else 0) | (WRITE if up.waiting else 0))

    # --- ends -------------------------------------------------------------------------------------------------------

    def _ended(self, half: Half) -> None:
        """Pass on the end: the source of `half` will send no more, and all that it sent is delivered."""
        self._stop(half)
        if self._broken is not None:
            self._settle()
            return
        if self._up.over and self._down.over:
            self._finish("eof", reset=False)  # which ends the sink's direction too
            return
        try:
            half.sink.shutdown(SHUT_WR)
        except OSError:
            self._broke(half.sink, seen_reading=False)
            return
        relay = self._relay
        if relay.half_close_timeout < relay.wheel.horizon:  # a later one is seen to when the wheel has turned
            self._schedule(self._active + relay.half_close_timeout, self._check_idle)
        self._ask()

    def _broke(self, side: _socket.socket, seen_reading: bool) -> None:
        """The connection of `side` is dead. What it had sent before is still delivered, then the other side is reset
        too."""
        if self._broken not in (None, side):
            self._finish("reset", reset=True)
            return
        self._broken = side
        towards, away = self._around(side)
        self._stop(towards)
        if seen_reading:
            self._stop(away)  # else it goes on until its source is empty
        self._settle()

    def _settle(self) -> None:
        """Reset the side that lives as soon as it has acknowledged all that was sent to it, as would happen without a
        gateway."""
        if self._broken is None or self._on_done is None:
            return
        _, away = self._around(self._broken)
        if away.over and not unacknowledged(away.sink):
            self._finish("reset", reset=True)
        elif self._progress is None:
            self._progress = (-1, 0)
            self._schedule(0, self._check_settled)
        if self._on_done is not None:
            self._ask()

    def _check_settled(self, now: float) -> float | None:
        if self._broken is None:
            return None
        _, away = self._around(self._broken)
        progress = (away.moved, unacknowledged(away.sink))
        if progress != self._progress:
            self._progress = progress
            self._active = now
        if (away.over and not progress[1]) or now >= self._active + RESET_GRACE:
            self._finish("reset", reset=True)
            return None
        return now

    def _around(self, side: _socket.socket) -> tuple[Half, Half]:
        """Return the halves towards `side` and away from it."""
        return (self._down, self._up) if side is self._left else (self._up, self._down)

    def _check_idle(self, now: float) -> float | None:
        half_closed = self._up.over or self._down.over
        due = self._active + (self._relay.half_close_timeout if half_closed else self._relay.idle_timeout)
        if now < due:
            return due
        self._finish("half-closed" if half_closed else "idle", reset=True)
        return None

    def _schedule(self, due: float, check: Callable[[float], float | None]) -> None:
        if self._entry is not None:
            self._relay.wheel.discard(self._entry)
        self._entry = self._relay.wheel.add(due, check)

    def _stop(self, half: Half) -> None:
        """Stop this direction: no more bytes are moved."""
        half.over = True
        half.reading = half.waiting = False
        half.rest = b""
        if half.pause is not None:
            self._relay.wheel.discard(half.pause)
            half.pause = None
        if half.pipe is not None:
            self._relay.pool.give_back(half.pipe)
            half.pipe = None

    def _finish(self, reason: Reason, reset: bool) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is None:
            return
        self._stop(self._up)
        self._stop(self._down)
        if self._entry is not None:
            self._relay.wheel.discard(self._entry)
            self._entry = None
        self._left_watch.forget(closing=True)
        self._right_watch.forget(closing=True)
        for sock in (self._left, self._right):
            if reset:
                close_by_reset(sock)
            sock.close()
        self._relay.live.discard(self)
        side: SideName | None = None
        if reason == "reset":
            side = "left" if self._broken is self._left else "right"
        # Later, on its own: an error in it is the hub's to report, and `abort` does not call back its caller.
        get_hub().loop.run_callback(on_done, RelayResult(self.up, self.down, reason, side))

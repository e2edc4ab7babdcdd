"""The data path: two sockets joined in the kernel, driven by libev callbacks without a greenlet.

Bytes go from socket to pipe to socket by splice(2) and are never seen. Each direction is a `_Half`. A half reads only
while its pipe is empty, so a sink that is full stops the reading (backpressure), and EAGAIN on reading can only mean
that the source is empty. Everything here runs in the hub: it never blocks and never raises out of a callback.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable
from functools import partial
from socket import AF_INET, AF_INET6, MSG_PEEK, SHUT_WR
from time import monotonic
from typing import TYPE_CHECKING, Literal

import msgspec
from gevent import get_hub

from gateway.relay.connection import RelaySocket, close_by_reset, local_hosts, take, unacknowledged
from gateway.relay.hangup import Hangups
from gateway.relay.pace import Pace
from gateway.relay.pipes import PIPE_SIZE, Pipe, PipePool
from gateway.relay.wheel import Entry, Wheel

if TYPE_CHECKING:
    from gevent._types import _IoWatcher, _Loop

READ, WRITE = 1, 2  # libev's EV_READ, EV_WRITE
FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
BUDGET = 1024 * 1024  # bytes that one callback may move, so that a fast flow does not starve the others
ENOUGH = 64 * 1024  # a shorter read most likely emptied the source: epoll will tell when there is more
COPY_SIZE = 64 * 1024
RESET_GRACE = 5.0  # seconds without progress in delivering what came before a reset, until the reset overtakes it

Reason = Literal["eof", "reset", "idle", "half-closed", "aborted"]
SideName = Literal["left", "right"]


class RelayResult(msgspec.Struct, frozen=True):
    """How a relayed flow ended. `up`: bytes delivered from left to right, `down`: from right to left.

    `reason`: "eof" (both sides closed in order), "reset" (`side` broke the connection), "idle" and "half-closed"
    (nothing moved for the time that is allowed), "aborted" (by the gateway).
    """

    up: int
    down: int
    reason: Reason
    side: SideName | None = None


class _Half:
    """One direction of a flow. It is at any time in one of: reading, waiting for room in the sink (`pipe` may hold
    bytes), over."""

    __slots__ = ("moved", "over", "pace", "pause", "pipe", "readable", "reading", "sink", "source", "writable")

    def __init__(self, source: _socket.socket, sink: _socket.socket, readable: _IoWatcher, pace: Pace | None) -> None:
        self.source = source
        self.sink = sink
        self.readable: _IoWatcher | None = readable
        self.writable: _IoWatcher | None = None  # made when the sink is full for the first time
        self.reading = False
        self.over = False
        self.pipe: Pipe | None = None
        self.moved = 0
        self.pace = pace
        self.pause: Entry | None = None  # while the rate allows no reading


class Relay:
    """What the flows of a process share: pipes, a timer wheel, limits. One a worker, made in its hub's thread."""

    def __init__(self, idle_timeout: float, half_close_timeout: float, pipe_size: int = PIPE_SIZE) -> None:
        """`idle_timeout`: seconds without a byte in either direction until a flow is reset; `half_close_timeout`: the
        same once one side has closed its direction."""
        self.idle_timeout = idle_timeout
        self.half_close_timeout = half_close_timeout
        self.live: set[RelayHandle] = set()
        self.pool = PipePool(pipe_size)
        self.wheel = Wheel()
        self.hangups = Hangups()

    def start(
        self,
        left: RelaySocket,
        right: RelaySocket,
        on_done: Callable[[RelayResult], None],
        up: Pace | None = None,
        down: Pace | None = None,
    ) -> RelayHandle:
        """Join two connected TCP (or Unix stream) sockets until both have closed.

        Takes the sockets over: the objects passed in are detached and of no more use, and the relay closes the
        connections. `on_done` is called once, from the hub, and so must not block. `up`, `down`: at what pace to read
        from left and from right; may be shared. ValueError for a closed socket.
        """
        if left.fileno() < 0 or right.fileno() < 0:
            raise ValueError("a closed socket cannot be relayed")
        return RelayHandle(self, take(left), take(right), on_done, up, down)

    def close(self) -> None:
        """Abort every live flow by a reset, and free what they shared. Not to be used after that."""
        for handle in tuple(self.live):
            handle.abort(reset=True)
        self.pool.close()
        self.hangups.close()


class RelayHandle:
    """A flow being relayed."""

    __slots__ = (
        "_active",
        "_broken",
        "_down",
        "_entry",
        "_left",
        "_loop",
        "_on_done",
        "_progress",
        "_relay",
        "_right",
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
    ) -> None:
        self._loop: _Loop = get_hub().loop
        self._relay = relay
        self._left = left
        self._right = right
        self._on_done: Callable[[RelayResult], None] | None = on_done
        self._up = _Half(left, right, self._loop.io(left.fileno(), READ), up)
        self._down = _Half(right, left, self._loop.io(right.fileno(), READ), down)
        self._broken: _socket.socket | None = None
        self._progress: tuple[int, int] | None = None  # of delivering what a broken side had sent
        self._active = monotonic()
        self._entry: Entry | None = relay.wheel.add(self._active + relay.idle_timeout, self._check_idle)
        relay.live.add(self)
        self._read(self._up)
        self._read(self._down)

    @property
    def up(self) -> int:
        """Bytes delivered from left to right so far."""
        return self._up.moved

    @property
    def down(self) -> int:
        """Bytes delivered from right to left so far."""
        return self._down.moved

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(self._left, self._right)

    def abort(self, reset: bool = True) -> None:
        """End the flow now, by a reset of both sides or by closing them; bytes in the gateway are lost. May be called
        again, and after the end."""
        self._finish("aborted", reset)

    # --- moving bytes -----------------------------------------------------------------------------------------------

    def _pump(self, half: _Half) -> None:
        """Move what can be moved without waiting, within the budget."""
        self._active = monotonic()
        pool = self._relay.pool
        pipe, pace, limit = half.pipe, half.pace, COPY_SIZE
        if pipe is None:
            if pace is not None and not (limit := min(limit, pace.allowance(self._active))):
                self._pause(half, pace)
                return
            pipe = half.pipe = pool.borrow()
            if pipe is None:
                self._copy(half, limit)
                return
        source, sink = half.source.fileno(), half.sink.fileno()
        budget = BUDGET
        while True:
            if not pipe.held:
                limit = pool.size
                if pace is not None and not (limit := min(limit, pace.allowance(self._active))):
                    break  # reading again will find that there is none, and wait
                try:
                    pipe.held = count = os.splice(source, pipe.writer, limit, flags=FLAGS)
                except BlockingIOError:
                    break
                except OSError:
                    self._broke(half.source, seen_reading=True)
                    return
                if not count:
                    self._ended(half)
                    return
                if pace is not None:
                    pace.spend(count)
                budget -= count
                if count < ENOUGH:
                    budget = 0
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

    def _copy(self, half: _Half, limit: int) -> None:
        """Move one buffer without a pipe, for a process that has no descriptors left. It is peeked at, and taken from
        the source only as far as the sink took it, so that here too nothing is held."""
        try:
            data = half.source.recv(limit, MSG_PEEK)
        except BlockingIOError:
            self._read(half)
            return
        except OSError:
            self._broke(half.source, seen_reading=True)
            return
        if not data:
            self._ended(half)
            return
        try:
            count = half.sink.send(data)
        except BlockingIOError:
            self._wait_for_room(half)
            return
        except OSError:
            self._broke(half.sink, seen_reading=False)
            return
        half.source.recv(count)
        if half.pace is not None:
            half.pace.spend(count)
        half.moved += count
        self._read(half)

    def _read(self, half: _Half) -> None:
        if not half.reading and half.readable is not None:
            half.reading = True
            half.readable.start(self._pump, half)

    def _rest(self, half: _Half) -> None:
        """Do not read for the moment; a reset is noticed all the same."""
        if half.reading and half.readable is not None:
            half.reading = False
            half.readable.stop()
        self._watch_for_reset(half.source)

    def _pause(self, half: _Half, pace: Pace) -> None:
        self._rest(half)
        half.pause = self._relay.wheel.add(pace.due(self._active), partial(self._resume, half))

    def _resume(self, half: _Half, _now: float) -> None:
        half.pause = None
        self._relay.hangups.forget(half.source.fileno())
        self._pump(half)

    def _wait_for_room(self, half: _Half) -> None:
        self._rest(half)
        if half.writable is None:
            half.writable = self._loop.io(half.sink.fileno(), WRITE)
        half.writable.start(self._room, half)

    def _room(self, half: _Half) -> None:
        if half.writable is not None:
            half.writable.stop()
        self._relay.hangups.forget(half.source.fileno())
        self._pump(half)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _ended(self, half: _Half) -> None:
        """The source of `half` will send no more, and all that it sent is delivered: pass that on."""
        self._stop(half)
        if self._broken is not None:
            self._settle()
            return
        try:
            half.sink.shutdown(SHUT_WR)
        except OSError:
            self._broke(half.sink, seen_reading=False)
            return
        if self._up.over and self._down.over:
            self._finish("eof", reset=False)
        else:
            self._schedule(self._active + self._relay.half_close_timeout, self._check_idle)
            self._watch_for_reset(half.source)

    def _broke(self, side: _socket.socket, seen_reading: bool) -> None:
        """The connection of `side` is dead: what it had sent before is still delivered, then the other is reset too."""
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
        """Reset the side that lives as soon as it has acknowledged all that was sent to it, as without a gateway."""
        if self._broken is None or self._on_done is None:
            return
        _, away = self._around(self._broken)
        if away.over and not unacknowledged(away.sink):
            self._finish("reset", reset=True)
        elif self._progress is None:
            self._progress = (-1, 0)
            self._schedule(0, self._check_settled)
            self._watch_for_reset(away.sink)

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

    def _around(self, side: _socket.socket) -> tuple[_Half, _Half]:
        """The halves towards `side` and away from it."""
        return (self._down, self._up) if side is self._left else (self._up, self._down)

    def _watch_for_reset(self, side: _socket.socket) -> None:
        if side.family in (AF_INET, AF_INET6):
            self._relay.hangups.watch(side.fileno(), partial(self._broke, side, seen_reading=False))

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

    def _stop(self, half: _Half) -> None:
        """No more bytes in this direction. Watchers go before anybody may close the descriptor they watch."""
        half.over = True
        half.reading = False
        for watcher in (half.readable, half.writable):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        half.readable = half.writable = None
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
        for sock in (self._left, self._right):
            self._relay.hangups.forget(sock.fileno())
            if reset:
                close_by_reset(sock)
            sock.close()
        self._relay.live.discard(self)
        side: SideName | None = None
        if reason == "reset":
            side = "left" if self._broken is self._left else "right"
        # Later, on its own: an error in it is the hub's to report, and `abort` does not call back its caller.
        self._loop.run_callback(on_done, RelayResult(self.up, self.down, reason, side))

"""The data path for a socket whose bytes on the wire are not those of the stream: two greenlets copy them."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import gevent.socket as gsocket

from gateway.net.relay.connection import local_hosts, unacknowledged
from gateway.net.relay.half import FRESH, Head, Legacy, Reason, RelayResult, SideName
from gateway.net.relay.splice import RESET_GRACE, Relay
from gateway.net.slices import slices
from gateway.net.sockets import abort
from gateway.policy.pace import Pace

READ_SIZE = 32768  # bytes: to encrypt them takes a fraction of a millisecond
SETTLE = 0.05  # seconds between two looks at whether all has arrived


class EncodedSocket(gsocket.socket):
    """A socket whose `recv` and `send` transform the bytes, so that the kernel alone cannot relay it."""


class CopyHandle:
    """A flow that is copied between `left` and `right`, as in `Relay.start`, with the limits of `relay`."""

    def __init__(
        self,
        relay: Relay,
        left: gsocket.socket,
        right: gsocket.socket,
        on_done: Callable[[RelayResult], None],
        up: Pace | None = None,
        down: Pace | None = None,
        legacy: Legacy = FRESH,
    ) -> None:
        self.up = 0
        self.down = 0
        self._relay = relay
        self._left = left
        self._right = right
        self._on_done = on_done
        self._active = time.monotonic()
        self._broken: SideName | None = legacy.broken  # the side whose connection is dead
        self._over = False
        for sock in (left, right):
            sock.settimeout(None)
        self._greenlets = [
            gevent.spawn(self._copy, *direction)
            for direction, over in (
                ((left, right, True, up, legacy.up), legacy.up.over or legacy.broken == "right"),
                ((right, left, False, down, legacy.down), legacy.down.over or legacy.broken == "left"),
            )
            if not over
        ]
        self._open = len(self._greenlets)  # directions
        self._entry = relay.wheel.add(self._active + relay.idle_timeout, self._check_idle)
        if not self._open:
            self._finish("eof" if self._broken is None else "reset", self._broken is not None, self._broken)

    def readers(self) -> tuple[()]:
        """Nothing of it is read."""
        return ()

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(self._left, self._right)

    def abort(self, reset: bool = True) -> None:
        """End the flow now. May be called again, and after the end."""
        self._finish("aborted", reset)

    def _copy(self, source: gsocket.socket, sink: gsocket.socket, up: bool, pace: Pace | None, head: Head) -> None:
        source_name: SideName = "left" if up else "right"
        sink_name: SideName = "right" if up else "left"
        side = sink_name
        try:
            if head.rest:
                sink.sendall(head.rest)
                self._count(up, len(head.rest))
            side = source_name
            while data := source.recv(_allowed(pace)):
                if pace is not None:
                    pace.spend(len(data))
                side = sink_name
                sink.sendall(data)
                side = source_name
                self._active = time.monotonic()
                self._count(up, len(data))
                slices().wait()  # neither end may ever make it wait, and each piece costs a fraction of a millisecond
            if self._broken is None:
                side = sink_name
                sink.shutdown(gsocket.SHUT_WR)
        except OSError:
            if self._broken is None:
                self._broken = side
            if side == sink_name and self._broken == sink_name and self._open > 1:
                self._open -= 1
                return  # what the dead side had sent is still delivered: by the other direction, which then ends it
        if self._broken is not None:
            if self._broken == source_name:
                _let_arrive(sink)
            self._finish("reset", True, self._broken)
            return
        self._open -= 1
        if not self._open:
            self._finish("eof", False)
        else:
            self._relay.wheel.discard(self._entry)
            self._active = time.monotonic()
            self._entry = self._relay.wheel.add(self._active + self._relay.half_close_timeout, self._check_idle)

    def _count(self, up: bool, count: int) -> None:
        if up:
            self.up += count
        else:
            self.down += count

    def _check_idle(self, now: float) -> float | None:
        half = self._open < 2
        due = self._active + (self._relay.half_close_timeout if half else self._relay.idle_timeout)
        if now < due:
            return due
        self._finish("half-closed" if half else "idle", True)
        return None

    def _finish(self, reason: Reason, reset: bool, side: SideName | None = None) -> None:
        if self._over:
            return
        self._over = True
        self._relay.wheel.discard(self._entry)
        for sock in (self._left, self._right):
            if reset:
                abort(sock)
            else:
                sock.close()
        # In the hub's turn, as the relay does it; the greenlets end by themselves or by this.
        result = RelayResult(self.up, self.down, reason, side)
        gevent.get_hub().loop.run_callback(self._end, result)

    def _end(self, result: RelayResult) -> None:
        for greenlet in self._greenlets:
            greenlet.kill(block=False)
        self._on_done(result)


def _let_arrive(sink: gsocket.socket) -> None:
    """Wait until the other end has acknowledged all that was sent to it, as long as that makes progress."""
    left, until = -1, time.monotonic() + RESET_GRACE
    try:
        while (now_left := unacknowledged(sink)) and time.monotonic() < until:
            if now_left != left:
                left, until = now_left, time.monotonic() + RESET_GRACE
            gevent.sleep(SETTLE)
    except OSError:
        pass  # closed meanwhile


def _allowed(pace: Pace | None) -> int:
    """Wait until something may be read, and return how many bytes."""
    if pace is None:
        return READ_SIZE
    while not (allowed := pace.allowance(now := time.monotonic())):
        gevent.sleep(pace.due(now) - now)
    return min(allowed, READ_SIZE)

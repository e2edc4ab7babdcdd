"""The data path for a socket whose bytes on the wire are not those of the stream: copied through two greenlets."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import gevent.socket as gsocket

from gateway.net.relay.connection import local_hosts
from gateway.net.relay.half import Reason, RelayResult, SideName
from gateway.net.relay.splice import Relay
from gateway.net.sockets import abort
from gateway.policy.pace import Pace

READ_SIZE = 65536


class EncodedSocket(gsocket.socket):
    """A socket with a `recv` and a `send` that change what passes: the kernel alone cannot relay it."""


class CopyHandle:
    """A flow that is copied: `left` and `right` as `Relay.start` has them, with the limits of `relay`."""

    def __init__(
        self,
        relay: Relay,
        left: gsocket.socket,
        right: gsocket.socket,
        on_done: Callable[[RelayResult], None],
        up: Pace | None = None,
        down: Pace | None = None,
    ) -> None:
        self.up = 0
        self.down = 0
        self._relay = relay
        self._left = left
        self._right = right
        self._on_done = on_done
        self._active = time.monotonic()
        self._open = 2  # directions
        self._over = False
        for sock in (left, right):
            sock.settimeout(None)
        self._greenlets = [
            gevent.spawn(self._copy, left, right, True, up),
            gevent.spawn(self._copy, right, left, False, down),
        ]
        self._entry = relay.wheel.add(self._active + relay.idle_timeout, self._check_idle)

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(self._left, self._right)

    def abort(self, reset: bool = True) -> None:
        """End the flow now. May be called again, and after the end."""
        self._finish("aborted", reset)

    def _copy(self, source: gsocket.socket, sink: gsocket.socket, up: bool, pace: Pace | None) -> None:
        side = source
        try:
            while data := source.recv(_allowed(pace)):
                if pace is not None:
                    pace.spend(len(data))
                side = sink
                sink.sendall(data)
                side = source
                self._active = time.monotonic()
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
            side = sink
            sink.shutdown(gsocket.SHUT_WR)
        except OSError:
            self._finish("reset", True, "left" if side is self._left else "right")
            return
        self._open -= 1
        if not self._open:
            self._finish("eof", False)
            return
        self._relay.wheel.discard(self._entry)
        self._active = time.monotonic()
        self._entry = self._relay.wheel.add(self._active + self._relay.half_close_timeout, self._check_idle)

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


def _allowed(pace: Pace | None) -> int:
    """How much may be read now; waits until it is something."""
    if pace is None:
        return READ_SIZE
    while not (allowed := pace.allowance(now := time.monotonic())):
        gevent.sleep(pace.due(now) - now)
    return min(allowed, READ_SIZE)

"""Carries both directions of a connection, until both have ended.

What ends in order ends in order on the other side. What breaks is reset there, once all that had come before is
delivered: a program would take an end that was none for the end of a file. A few bytes are copied; more go from socket
to pipe to socket in the kernel (splice), so a connection takes a pipe only while much goes through it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Callable

from gateway.client.blocking import Address
from gateway.client.sockets import RESET_GRACE, reset

Inward = Callable[[Address, Address], socket.socket]  # connects from an address to a port of the program; OSError

COPY_SIZE = 16384  # a side that sends more at once is spliced until it has no more
PIPE_SIZE = 1 << 18
MOST_PIECES = 16  # pieces of one direction, until the other one has its turn
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


def relay(near: socket.socket, far: socket.socket) -> None:
    """Join two connections until both directions have ended. Takes both sockets over."""
    try:
        broken = _Relay(near, far).run()
    except OSError:  # one of them is closed already
        broken = near
    if broken is None:
        near.close()
        far.close()
        return
    broken.close()
    reset(far if broken is near else near)


class _Half:
    """One direction. `over`: nothing more is moved."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.rest = b""  # copied, and not delivered
        self.pipe: tuple[int, int] | None = None
        self.held = 0  # bytes in the pipe
        self.over = False

    @property
    def waiting(self) -> bool:
        """Whether something waits for room in the sink."""
        return bool(self.rest or self.held)

    def stop(self) -> None:
        self.over = True
        self.rest, self.held = b"", 0
        self.close_pipe()

    def open_pipe(self) -> None:
        with contextlib.suppress(OSError):  # no descriptors: copying is slower, and right
            self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.fcntl(self.pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def close_pipe(self) -> None:
        for descriptor in self.pipe or ():
            os.close(descriptor)
        self.pipe = None


class _Relay:
    """Two halves and what is asked of the kernel for them."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._up, self._down = _Half(near, far), _Half(far, near)
        self._broken: socket.socket | None = None
        self._poll = select.poll()
        self._asked: dict[int, int] = {}
        for sock in (near, far):
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # of another family
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> socket.socket | None:
        """Move bytes until both directions are over, and return the socket that broke; None: both have ended."""
        up, down = self._up, self._down
        try:
            while not (up.over and down.over):
                self._ask(up.source, up, down)
                self._ask(down.source, down, up)
                ready = self._poll.poll(None if self._broken is None else RESET_GRACE * 1000)
                if not ready and self._broken is not None:
                    break  # nobody takes what had come before
                for descriptor, events in ready:
                    out, into = (up, down) if descriptor == up.source.fileno() else (down, up)
                    self._serve(out, into, events)
        finally:
            up.close_pipe()
            down.close_pipe()
        return self._broken

    def _ask(self, sock: socket.socket, out: _Half, into: _Half) -> None:
        """Ask for what a socket, the source of `out` and the sink of `into`, is waited for."""
        descriptor = sock.fileno()
        events = 0
        if not out.over and not out.waiting:
            events |= select.POLLIN
        if into.waiting:
            events |= select.POLLOUT
        # A hang-up is told in any case, again and again: it is news only where nothing of that side is on its way.
        watched = bool(events) or (out.over and sock is not self._broken)
        before = self._asked.get(descriptor)
        if not watched:
            if before is not None:
                self._poll.unregister(descriptor)
                del self._asked[descriptor]
        elif before != events:
            self._poll.register(descriptor, events)
            self._asked[descriptor] = events

    def _serve(self, out: _Half, into: _Half, events: int) -> None:
        lost = bool(events & (select.POLLERR | select.POLLHUP))
        if into.waiting and (lost or events & select.POLLOUT):
            self._pump(into)
        if not out.over and not out.waiting and (lost or events & select.POLLIN):
            self._pump(out)
        elif out.over and lost:
            self._broke(out.source)

    def _pump(self, half: _Half) -> None:
        """Move what can be moved without waiting."""
        for _ in range(MOST_PIECES):
            try:
                if not half.waiting and not self._read(half):
                    return
            except BlockingIOError:
                return
            except OSError:
                half.stop()  # what had come before is delivered
                self._broke(half.source)
                return
            try:
                self._write(half)
            except BlockingIOError:
                return
            except OSError:
                self._broke(half.sink)
                return

    def _read(self, half: _Half) -> bool:
        """Take bytes from the source, when nothing waits; whether there was any. Raises OSError."""
        if half.pipe is not None:
            with contextlib.suppress(BlockingIOError):
                half.held = os.splice(half.source.fileno(), half.pipe[1], PIPE_SIZE, flags=_FLAGS)
            if half.held:
                return True
            # Nothing: there is no more, or an urgent byte comes next, which recv passes and splice does not.
        half.rest = half.source.recv(COPY_SIZE)
        if not half.rest:
            self._ended(half)
            return False
        if len(half.rest) < COPY_SIZE:
            half.close_pipe()
        elif half.pipe is None:
            half.open_pipe()
        return True

    def _write(self, half: _Half) -> None:
        """Deliver what waits. Raises OSError."""
        while half.held:
            assert half.pipe is not None
            half.held -= os.splice(half.pipe[0], half.sink.fileno(), half.held, flags=_FLAGS)
        while half.rest:
            half.rest = half.rest[half.sink.send(half.rest) :]

    def _ended(self, half: _Half) -> None:
        """Handle the end of one direction: the source sends no more, and all that it sent is delivered."""
        half.stop()
        if self._broken is half.source:
            return  # whoever waits for more is told by a reset
        try:
            half.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._broke(half.sink)

    def _broke(self, sock: socket.socket) -> None:
        """A connection is dead. What came from it before goes on."""
        if self._broken is not None and self._broken is not sock:  # now both are
            self._up.stop()
            self._down.stop()
            return
        self._broken = sock
        (self._down if self._up.source is sock else self._up).stop()

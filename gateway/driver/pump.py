"""Moves the bytes of a flow that a module reads.

Every byte that comes is kept until it is delivered, so nothing is lost, whatever happens to the module: `pass_on`
delivers what is kept, and what comes afterwards goes on unread, until another carrier continues at that very byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
import gevent.socket as gsocket
from gevent.event import Event as Wakeup

from alg.api import Edit, Side
from gateway.net.relay.connection import local_hosts
from gateway.net.relay.half import Head, Legacy, SideName
from gateway.net.slices import slices
from gateway.net.sockets import abort
from gateway.net.urgent import Marks, is_plain, receive

READ_SIZE = 16384
HIGH_WATER = 65536  # bytes waiting for a slow reader, beyond which the other side is not read

_NAMES: dict[Side, SideName] = {Side.CLIENT: "left", Side.SERVER: "right"}


class PumpDirection:
    """One direction: what came from `source` and is not delivered (`held`), what was delivered and is not sent (`out`).

    `asked`: the end is to be passed on once `out` is empty; `over`: that was done.
    """

    __slots__ = ("asked", "closed", "drained", "held", "marks", "out", "over", "sending", "sink", "source", "writable")

    def __init__(self, source: gsocket.socket, sink: gsocket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = bytearray()
        self.out = bytearray()
        self.marks = Marks()
        self.closed = False  # the source sends no more
        self.asked = False
        self.over = False
        self.sending = False  # a part of `out` is on its way: the next one to send must wait
        self.writable = Wakeup()  # something to send, or the end
        self.drained = Wakeup()  # room for more

    def deliver(self, data: bytes, edits: Sequence[Edit], edited: bytes) -> None:
        """Queue `edited` in place of `data`, which are the first bytes of `held`."""
        del self.held[: len(data)]
        self.out += edited
        self.marks.delivered(data, edits, len(edited))
        self.drained.set()
        self.writable.set()

    def say(self, data: bytes) -> None:
        """Queue bytes that did not come from the other side."""
        self.out += data
        self.marks.said(len(data))
        self.writable.set()

    def end(self) -> None:
        """Pass the end of the stream on when all is sent."""
        self.asked = True
        self.writable.set()


class Pump:
    """Reads both sides and writes to both. It reports events by these calls, from its greenlets:

    `received(side, data)`: bytes came, and are held; returns when the next bytes may be read. `closed(side)`: the side
    has ended its direction. `changed()`: the flow may be over, or ready to be handed over. `waits(side)`: asks whether
    not to read for the moment; asked again after `wake`.
    """

    def __init__(
        self,
        sockets: dict[Side, gsocket.socket],
        received: Callable[[Side, bytes], None],
        closed: Callable[[Side], None],
        changed: Callable[[], None],
        waits: Callable[[Side], bool],
    ) -> None:
        self.up = 0  # bytes that came from the client
        self.down = 0
        self.passing = False  # what comes goes on unread
        self.aborted = False
        self.broken: Side | None = None  # its connection is dead
        self.moved_at = time.monotonic()
        self.directions = {side: PumpDirection(sockets[side], sockets[side.other]) for side in Side}
        self._received = received
        self._closed = closed
        self._changed = changed
        self._waits = waits
        self._readers: list[gevent.Greenlet[..., None]] = []
        self._writers: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Begin to move bytes."""
        self._readers = [gevent.spawn(self._read, side) for side in Side]
        self._writers = [gevent.spawn(self._write, side) for side in Side]

    @property
    def half_closed(self) -> bool:
        """Whether a side has ended its direction."""
        return any(direction.closed for direction in self.directions.values())

    @property
    def over(self) -> bool:
        """Whether both directions have come to their end, or the flow was aborted."""
        return self.aborted or all(direction.over for direction in self.directions.values())

    @property
    def movable(self) -> bool:
        """Whether another carrier can go on: what comes passes unread, no urgent byte is still to be marked, and on a
        protected connection no message is half sent. To a side whose connection is dead nothing is sent any more."""
        return self.passing and all(
            direction.over
            or side.other is self.broken
            or (not direction.marks.pending and (is_plain(direction.sink) or not (direction.out or direction.sending)))
            for side, direction in self.directions.items()
        )

    def pass_on(self) -> None:
        """Deliver what is held, and let what comes from now on pass unread."""
        self.passing = True
        for direction in self.directions.values():
            if direction.held:
                direction.deliver(data := bytes(direction.held), (), data)
            if direction.closed:
                direction.end()
            direction.drained.set()
        self._changed()

    def wake(self) -> None:
        """Ask `waits` again, because its answer may have changed."""
        for direction in self.directions.values():
            direction.drained.set()

    def hand_over(self) -> Legacy:
        """Stop, and return the rest for another carrier. Allowed only if `movable`."""
        self.stop()
        for side, direction in self.directions.items():
            if not direction.over:
                self._add(side, -len(direction.out))  # the next carrier counts them
        up, down = (self._head(self.directions[side]) for side in (Side.CLIENT, Side.SERVER))
        return Legacy(up, down, None if self.broken is None else _NAMES[self.broken])

    def stop(self) -> None:
        """Stop, and end the greenlets that wait. The sockets stay as they are."""
        gevent.killall([*self._readers, *self._writers])

    def abort(self) -> None:
        """Reset both connections. What is not sent is lost."""
        self.aborted = True
        for direction in self.directions.values():
            abort(direction.source)
        self._changed()

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its connections use."""
        return local_hosts(*(direction.source for direction in self.directions.values()))

    def came(self, side: Side, data: bytes, urgent: bool = False) -> None:
        """Take bytes that a side has sent."""
        direction = self.directions[side]
        direction.marks.came(len(data), urgent)
        self._add(side, len(data))
        self.moved_at = time.monotonic()
        direction.held += data
        if not self.passing:
            self._received(side, data)
        else:
            direction.deliver(data, (), data)

    @staticmethod
    def _head(direction: PumpDirection) -> Head:
        return Head(b"" if direction.over else bytes(direction.out), direction.over)

    def _add(self, side: Side, count: int) -> None:
        if side is Side.CLIENT:
            self.up += count
        else:
            self.down += count

    def _broke(self, side: Side) -> None:
        """The connection of `side` is dead. What it had sent before still goes on, and the next carrier ends the flow
        when that has arrived."""
        if self.broken is None and not self.aborted:
            self.broken = side
            self.pass_on()

    def _read(self, side: Side) -> None:
        direction = self.directions[side]
        while not self.aborted:
            while self._is_to_wait(side, direction):
                direction.drained.clear()
                direction.drained.wait()
            try:
                data, urgent = receive(direction.source, READ_SIZE)
            except OSError:
                self._broke(side)
                return
            if not data:
                direction.closed = True
                self.moved_at = time.monotonic()
                if self.passing:
                    direction.end()
                else:
                    self._closed(side)
                return
            self.came(side, data, urgent)
            if self.passing:
                self._changed()
                slices().wait()  # else a stream that never ends would keep the next carrier from coming

    def _is_to_wait(self, side: Side, direction: PumpDirection) -> bool:
        if len(direction.out) > HIGH_WATER:
            return True
        if self.passing:  # a protected connection is handed over when all is sent
            return not is_plain(direction.sink)
        return self._waits(side)

    def _write(self, side: Side) -> None:
        direction = self.directions[side]
        try:
            while True:
                if direction.out:
                    direction.sending = True
                    sent = direction.marks.send(direction.sink, bytes(direction.out[:READ_SIZE]))
                    direction.sending = False
                    del direction.out[:sent]
                    direction.drained.set()
                    if self.passing:
                        self._changed()
                elif direction.asked:
                    direction.sink.shutdown(gsocket.SHUT_WR)
                    direction.over = True
                    return
                else:
                    direction.writable.clear()
                    direction.writable.wait()
        except OSError:
            self._broke(side.other)
        finally:
            self._changed()

"""One direction of a relayed flow, and how a flow ended."""

from __future__ import annotations

import _socket
from typing import Literal, NamedTuple

import msgspec

from gateway.net.relay.pipes import Pipe
from gateway.net.relay.wheel import WheelEntry
from gateway.policy.pace import Pace

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


class Head(NamedTuple):
    """The state of one direction that an earlier carrier of a flow leaves. `rest`: bytes that it has read and not sent;
    `over`: the source has sent its last byte, all bytes were sent on, and the sink was told of the end."""

    rest: bytes = b""
    over: bool = False


class Legacy(NamedTuple):
    """The state of a flow that another carrier has begun: its two directions, and the side whose connection is dead
    already, if any."""

    up: Head = Head()
    down: Head = Head()
    broken: SideName | None = None


FRESH = Legacy()


class Half:
    """One direction of a flow. At any time it is in one of these states: reading, waiting for room in the sink (then
    `pipe` or `rest` may hold bytes), paused by its rate, over."""

    __slots__ = ("bulk", "moved", "over", "pace", "pause", "pipe", "reading", "rest", "sink", "source", "waiting")

    def __init__(self, source: _socket.socket, sink: _socket.socket, pace: Pace | None) -> None:
        self.source = source
        self.sink = sink
        self.pace = pace
        self.reading = True
        self.waiting = False
        self.over = False
        self.bulk = False  # splice, rather than copy
        self.pipe: Pipe | None = None
        self.rest = b""
        self.moved = 0
        self.pause: WheelEntry | None = None  # while the rate allows no reading

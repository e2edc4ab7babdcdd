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


# Bytes that one callback splices, so that a fast flow does not starve the others: what takes half a millisecond. With
# less than `MOST` while others wait to do the same, eight streams through one worker had 12 Gbit/s in place of 17. But
# the same bytes may take thirty times as long: in packets of 1,448 bytes, as all are behind urgent data, and where the
# kernel does the sender's and the receiver's part within our system call. While sockets with little to do are served
# too, a piece is `FIRST` at most: these wait for one piece at each step of theirs.
MOST = 1024 * 1024
FIRST = 256 * 1024
LEAST = 64 * 1024
LONG = 0.002  # seconds


def bulk_after(bulk: int, moved: int, seconds: float) -> int:
    """Return how many bytes the next callback may splice, after one that was given `bulk`, moved so many and took so
    long."""
    if seconds > LONG:
        return max(bulk // 2, LEAST)
    if moved >= bulk and seconds < LONG / 8:
        return min(bulk * 2, MOST)
    return bulk


# As long as an urgent byte is under way its sender sends packets of 1,448 bytes. Four senders that always have one keep
# two processors busy with these alone, and the kernel does that work in whatever system call comes. So each piece of a
# stream with one in it that takes long is charged for, beyond a few.
URGENT_LONG = 0.001  # seconds
URGENT_COST = 1.0  # seconds
URGENT_CREDIT = 4.0


class Half:
    """One direction of a flow. At any time it is in one of these states: reading, waiting for room in the sink (then
    `pipe` or `rest` may hold bytes), paused by its rate, over."""

    __slots__ = (
        "bulk",
        "moved",
        "over",
        "pace",
        "paid",
        "pause",
        "pipe",
        "reading",
        "rest",
        "sink",
        "source",
        "waiting",
    )

    def __init__(self, source: _socket.socket, sink: _socket.socket, pace: Pace | None) -> None:
        self.source = source
        self.sink = sink
        self.pace = pace
        self.reading = True
        self.waiting = False
        self.over = False
        self.bulk = 0  # bytes that are spliced in one callback; 0: they are copied
        self.pipe: Pipe | None = None
        self.rest = b""
        self.moved = 0
        self.pause: WheelEntry | None = None  # while the rate allows no reading
        self.paid = 0.0  # until when (monotonic) what urgent bytes have cost is paid for

    def charge_urgent(self, now: float) -> float:
        """Charge for a piece of a stream with an urgent byte in it that took long. Return before which time (monotonic)
        nothing more should be read."""
        self.paid = max(self.paid, now) + URGENT_COST
        return self.paid - URGENT_CREDIT

"""The messages between the supervisor and a child: JSON in the packets of a SEQPACKET socket pair, the lifeline.

The end of the connection tells each side that the other is dead.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import msgspec

LONGEST = 65536  # bytes of a message
MOST_FDS = 250  # the kernel takes 253 with one message


class File(msgspec.Struct, frozen=True, tag="file"):
    """A shared file has changed. Its memfd comes along."""

    name: str


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Prepare for another configuration. A memfd of a Boot comes along, and the descriptors that it names."""


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Use what was prepared."""


class Rollback(msgspec.Struct, frozen=True, tag="rollback"):
    """Forget what was prepared."""


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Stop accepting (another process does), let flows go on for some seconds, and end."""

    seconds: float


class Go(msgspec.Struct, frozen=True, tag="go"):
    """Begin. For a process that was started in standby."""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Ask a child to log its status."""


class Departed(msgspec.Struct, frozen=True, tag="departed"):
    """Tell a child that this host has lost an address."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Ask whether the process is alive. Answered with Pong."""


class Answering(msgspec.Struct, frozen=True, tag="answering"):
    """The answer to an Ask. The connection on which the rows will come is passed with it, or `error` is the reason why
    there is none."""

    number: int
    error: str = ""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child serves, or is ready to (standby)."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The answer to Prepare. `reason`: why the configuration cannot be used, if so."""

    reason: str = ""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The answer to Commit: how many flows and pinholes were ended because they are not allowed any more. Also the
    answer to Go: the child serves."""

    ended: int = 0


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to Ping."""


class Busy(msgspec.Struct, frozen=True, tag="busy"):
    """The child lives, and waits for a program that this host is slow to run. Until that has ended it answers
    nothing."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question for another process, which the supervisor sends (gateway/supervisor/desk.py)."""

    number: int
    process: str
    verb: str
    id: str = ""


ToChild = File | Prepare | Commit | Rollback | Retire | Go | Report | Departed | Ping | Answering
FromChild = Ready | Prepared | Done | Pong | Busy | Ask


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new lifeline."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: ToChild | FromChild, fds: Sequence[int] = ()) -> None:
    """Send a message, with descriptors. Raises OSError if the other side is gone."""
    socket.send_fds(sock, [msgspec.json.encode(message)], list(fds))


def hear_child(sock: socket.socket) -> FromChild | None:
    """Receive the child's next message; None at the end. Raises BlockingIOError if there is none yet."""
    try:
        data = sock.recv(LONGEST)
    except ConnectionResetError:
        return None
    return msgspec.json.decode(data, type=FromChild) if data else None


def hear_supervisor(sock: socket.socket) -> tuple[ToChild, list[int]] | None:
    """Receive the supervisor's next message and the descriptors that came with it; None at the end. Raises
    BlockingIOError if there is none yet."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, LONGEST, MOST_FDS)
    except ConnectionResetError:
        return None
    if not data:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    return msgspec.json.decode(data, type=ToChild), fds

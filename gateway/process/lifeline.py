"""What the supervisor and a child say to each other: JSON in the packets of a SEQPACKET socket pair, the lifeline.

Its end tells each that the other is dead.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import msgspec

LONGEST = 65536  # bytes of a message
MOST_FDS = 250  # the kernel takes 253 with one message


class File(msgspec.Struct, frozen=True, tag="file"):
    """A shared file has changed; its memfd comes along."""

    name: str


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """There is another configuration: get ready for it. A memfd of a Boot comes along, then what that names."""


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Use what was prepared."""


class Rollback(msgspec.Struct, frozen=True, tag="rollback"):
    """Forget what was prepared."""


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Accept no more (somebody else does), let flows end for some seconds, and end."""

    seconds: float


class Go(msgspec.Struct, frozen=True, tag="go"):
    """For who was started in standby: begin."""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Log the status."""


class Departed(msgspec.Struct, frozen=True, tag="departed"):
    """This host has lost an address."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Do you live? Answered with Pong."""


class Answering(msgspec.Struct, frozen=True, tag="answering"):
    """To an Ask: the connection on which the answer will come is along, or `error` says why there is none."""

    number: int
    error: str = ""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child serves, or would if it was let (standby)."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The answer to Prepare; `reason`: why it cannot be used, if so."""

    reason: str = ""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The answer to Commit: how many flows and pinholes were ended because they are not allowed any more. The answer
    to Go: the child serves."""

    ended: int = 0


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to Ping."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question for another process, which the supervisor puts (gateway/supervisor/desk.py)."""

    number: int
    process: str
    verb: str
    id: str = ""


ToChild = File | Prepare | Commit | Rollback | Retire | Go | Report | Departed | Ping | Answering
FromChild = Ready | Prepared | Done | Pong | Ask


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a lifeline."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: ToChild | FromChild, fds: Sequence[int] = ()) -> None:
    """Send a message, with descriptors. OSError if nobody is there any more."""
    socket.send_fds(sock, [msgspec.json.encode(message)], list(fds))


def hear_child(sock: socket.socket) -> FromChild | None:
    """The child's next message, None at the end. BlockingIOError if there is none yet."""
    try:
        data = sock.recv(LONGEST)
    except ConnectionResetError:
        return None
    return msgspec.json.decode(data, type=FromChild) if data else None


def hear_supervisor(sock: socket.socket) -> tuple[ToChild, list[int]] | None:
    """The supervisor's next message and the descriptors that came with it; None at the end. BlockingIOError."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, LONGEST, MOST_FDS)
    except ConnectionResetError:
        return None
    if not data:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    return msgspec.json.decode(data, type=ToChild), fds

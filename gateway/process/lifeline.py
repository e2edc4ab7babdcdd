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


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child serves."""


ToChild = File
FromChild = Ready


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

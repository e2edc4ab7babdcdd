"""TCP urgent data on its way through an inspected flow. An FTP client's ABOR is urgent (RFC 959, 4.1.3)."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections import deque
from collections.abc import Sequence

import gevent.socket as gsocket

from alg.api import Edit

_SIOCATMARK = 0x8905  # <asm-generic/sockios.h>


def receive(sock: socket.socket, size: int) -> tuple[bytes, bool]:
    """Receive up to `size` bytes of a socket with SO_OOBINLINE. Returns the bytes, b"" at the end, and whether they are
    one urgent byte. Raises OSError.

    The kernel never reads across the mark, so the urgent byte is always the first of a read.
    """
    if not is_plain(sock):
        return sock.recv(size), False
    if not sock.recv(1, socket.MSG_PEEK):  # waits; only then the mark is known
        return b"", False
    urgent = bool(struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCATMARK, bytes(4)))[0])
    return sock.recv(1 if urgent else size), urgent


def is_plain(sock: socket.socket) -> bool:
    """Whether the bytes on the wire are the stream itself. Otherwise (GSSAPI, RFC 1961) TCP's mark says nothing about
    it."""
    return type(sock) is gsocket.socket


class Marks:
    """The urgent bytes of one direction: translates their places in what came to places in what is sent."""

    def __init__(self) -> None:
        self._came = 0
        self._passed = 0  # bytes that came and have been delivered
        self._queued = 0
        self._sent = 0
        self._in: deque[int] = deque()
        self._out: deque[int] = deque()

    @property
    def held(self) -> int:
        """The number of bytes that came and were not delivered yet."""
        return self._came - self._passed

    @property
    def pending(self) -> bool:
        """Whether an urgent byte is still to be sent as one."""
        return bool(self._in or self._out)

    def came(self, count: int, urgent: bool) -> None:
        """Count bytes that came. `urgent`: the last of them is urgent."""
        self._came += count
        if urgent:
            self._in.append(self._came - 1)

    def delivered(self, data: bytes, edits: Sequence[Edit], length: int) -> None:
        """Count bytes that were queued for sending: the next `data` of what came, with these edits, now `length`
        bytes."""
        while self._in and self._in[0] < self._passed + len(data):
            at = self._in.popleft() - self._passed
            if not any(edit.start <= at < edit.end for edit in edits):  # else the byte is no more
                shift = sum(len(edit.replacement) - (edit.end - edit.start) for edit in edits if edit.end <= at)
                self._out.append(self._queued + at + shift)
        self._passed += len(data)
        self._queued += length

    def said(self, length: int) -> None:
        """Count bytes that were queued for sending and did not come from the other side."""
        self._queued += length

    def send(self, sock: socket.socket, data: bytes) -> int:
        """Send the first bytes of `data`, at most up to the next mark. Returns how many were sent. Raises OSError."""
        mark = self._out[0] - self._sent if self._out else len(data)
        if mark == 0:
            count = sock.send(data[:1], socket.MSG_OOB if is_plain(sock) else 0)
            self._out.popleft()
        else:
            count = sock.send(data[:mark])
        self._sent += count
        return count

"""A netlink socket on which every answer has a deadline, unlike pyroute2's sockets. pyroute2's messages go over it.

It also packs attributes as bytes, for the few messages that are too frequent for a generic encoder (decision 0036).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

NETLINK_DEADLINE = 1.0
"""Seconds within which the kernel has to answer."""

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGHDR = struct.Struct("=IHHII")

ROOM = 1 << 21
"""Bytes of the buffer for answers: errors of a whole transaction, 768 bytes each, must not overflow it (ENOBUFS)."""

_LONGEST = 1 << 17  # bytes of an answer: the kernel's are of 32 KiB at most

SO_RCVBUFFORCE = 33
NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
NLATTR = struct.Struct("=HH")
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class NetfilterError(Exception):
    """The kernel or nft refused. `code` is an errno."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(code)}")
        self.code = code

    @property
    def rule(self) -> str:
        """The rule of the refusal of a pinhole that the kernel did not accept."""
        return "full" if self.code in (errno.ENFILE, errno.ENOSPC) else "kernel"


def attribute(kind: int, value: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    return NLATTR.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """Pack one attribute that consists of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in `data[start:]` as (kind, value). One that is cut off or too short ends the sequence."""
    at, end = start, len(data)
    while at + 4 <= end:
        length, kind = NLATTR.unpack_from(data, at)
        if length < 4 or at + length > end:
            return
        yield kind & NLA_TYPE_MASK, data[at + 4 : at + length]
        at += length + 3 & ~3


def attribute_map(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes in `data[start:]`, the last one of each kind."""
    return dict(attributes(data, start))


class Netlink:
    """A netlink socket. Must not be used by several threads. Raises NetfilterError; ETIMEDOUT if no answer comes."""

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        """`protocol`: netfilter's by default, or another one such as NETLINK_ROUTE."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:  # no descriptor is left
            raise NetfilterError(error.errno or errno.EIO, "netlink socket") from error
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN nothing is changed either
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self._socket.bind((0, 0))
        self._arrives = select.poll()
        self._arrives.register(self._socket, select.POLLIN)
        self.port: int = self._socket.getsockname()[0]  # names this socket in the kernel's notices of changes
        self._sequence = 0
        self._answers = bytearray(_LONGEST)  # made once: thousands of answers are read in a second

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def message(self, kind: int, flags: int, body: bytes) -> bytes:
        """Return a message with the next sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags, self._sequence, 0) + body

    def encoded(self, message: Any, kind: int, flags: int) -> bytes:
        """Encode one of pyroute2's messages, with the next sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        return bytes(message.data)

    def ask(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Send one of pyroute2's messages, and return the answers, decoded by the same class."""
        return decoded(type(message), self.request(self.encoded(message, kind, flags)))

    def send(self, data: bytes) -> None:
        """Send messages. The kernel carries them out before it returns, so there is nothing to wait for."""
        try:
            self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError as error:
            raise NetfilterError(error.errno or errno.EIO, "netlink send") from error

    def receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield messages (type, sequence, flags, whole) until the reader has enough, or the deadline is over."""
        deadline = time.monotonic() + NETLINK_DEADLINE
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetfilterError(errno.ETIMEDOUT, "netlink answer")
            try:
                # Mostly it is there already: to ask whether it is would double the system calls of an opening.
                end = self._socket.recv_into(self._answers, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._arrives.poll(left * 1000)
                continue
            except OSError as error:
                raise NetfilterError(error.errno or errno.EIO, "netlink answer") from error
            at = 0
            while at + NLMSGHDR.size <= end:
                length, kind, flags, sequence, _pid = NLMSGHDR.unpack_from(self._answers, at)
                behind = min(at + length, end)
                yield kind, sequence, flags, bytes(self._answers[at:behind])
                at += max(length + 3 & ~3, NLMSGHDR.size)

    def request(self, message: bytes) -> list[bytes]:
        """Send one message, and return the answers (whole messages). Raises NetfilterError with the kernel's errno."""
        for _ in range(5):
            self.send(message)
            answers: list[bytes] = []
            whole = True
            for kind, sequence, flags, packet in self.receive():
                if sequence != sequence_of(message):
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    break
                if kind == NLMSG_ERROR:
                    if code := error_of(packet):
                        raise NetfilterError(code, "netfilter")
                    break
                answers.append(packet)
            if whole:
                return answers
        raise NetfilterError(errno.EAGAIN, "netfilter changes while it is read")

    def ask_each(self, messages: Sequence[bytes]) -> list[bytes | None]:
        """Send questions that have one answer each, in one system call. Returns the answers (whole messages) in this
        order; None where the kernel has nothing (ENOENT). Raises NetfilterError for any other error."""
        positions = {sequence_of(message): at for at, message in enumerate(messages)}
        answers: list[bytes | None] = [None] * len(messages)
        self.send(b"".join(messages))
        for kind, sequence, _flags, packet in self.receive():
            at = positions.pop(sequence, None)
            if at is None:
                continue
            if kind != NLMSG_ERROR:
                answers[at] = packet
            elif (code := error_of(packet)) not in (0, errno.ENOENT):
                raise NetfilterError(code, "netfilter")
            if not positions:
                break
        return answers


def decoded(message_class: Any, packets: list[bytes]) -> list[Any]:
    """Decode whole messages by one of pyroute2's classes."""
    messages = [message_class(packet) for packet in packets]
    for message in messages:
        message.decode()
    return messages


def sequence_of(message: bytes) -> int:
    sequence: int = NLMSGHDR.unpack_from(message)[3]
    return sequence


def error_of(packet: bytes) -> int:
    """Return the errno in a message of type NLMSG_ERROR; 0 for success."""
    (code,) = struct.unpack_from("=i", packet, NLMSGHDR.size) if len(packet) >= NLMSGHDR.size + 4 else (-errno.EBADMSG,)
    return -int(code)

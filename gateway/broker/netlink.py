"""A netlink socket whose every answer has a deadline, which pyroute2's sockets have not; its messages go over it.

And attributes as bytes, for the few messages that are too many for a generic encoder (0036).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

NETLINK_DEADLINE = 1.0
"""Seconds that the kernel may take to answer."""

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGHDR = struct.Struct("=IHHII")

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
NLATTR = struct.Struct("=HH")
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class NetfilterError(Exception):
    """The kernel or nft would not do it; `code` is an errno."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(code)}")
        self.code = code

    @property
    def rule(self) -> str:
        """The rule by which a pinhole is refused that the kernel did not take."""
        return "full" if self.code in (errno.ENFILE, errno.ENOSPC) else "kernel"


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return NLATTR.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute that is made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data[start:]`: (kind, value). What is cut off or too short ends it."""
    at, end = start, len(data)
    while at + 4 <= end:
        length, kind = NLATTR.unpack_from(data, at)
        if length < 4 or at + length > end:
            return
        yield kind & NLA_TYPE_MASK, data[at + 4 : at + length]
        at += length + 3 & ~3


def attribute_map(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes in `data[start:]`, the last one of each kind."""
    return dict(attributes(data, start))


class Netlink:
    """A socket to netfilter. Not for several threads. Raises NetfilterError, ETIMEDOUT without an answer."""

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        """`protocol`: another than netfilter's, as NETLINK_ROUTE."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]  # by which the kernel's notices name who has changed something
        self._sequence = 0

    def message(self, kind: int, flags: int, body: bytes) -> bytes:
        """A message with the next sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags, self._sequence, 0) + body

    def encoded(self, message: Any, kind: int, flags: int) -> bytes:
        """One of pyroute2's messages, with the next sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        return bytes(message.data)

    def ask(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Send one of pyroute2's messages; the answers to it, decoded by the same class."""
        return decoded(type(message), self.request(self.encoded(message, kind, flags)))

    def send(self, data: bytes) -> None:
        self._socket.settimeout(NETLINK_DEADLINE)
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetfilterError(error.errno or errno.ETIMEDOUT, "netlink send") from error

    def receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Messages (type, sequence, flags, whole) until the reader has enough, or the deadline is over."""
        deadline = time.monotonic() + NETLINK_DEADLINE
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetfilterError(errno.ETIMEDOUT, "netlink answer")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 17)
            except TimeoutError:
                raise NetfilterError(errno.ETIMEDOUT, "netlink answer") from None
            except OSError as error:
                raise NetfilterError(error.errno or errno.EIO, "netlink answer") from error
            at = 0
            while at + NLMSGHDR.size <= len(data):
                length, kind, flags, sequence, _pid = NLMSGHDR.unpack_from(data, at)
                yield kind, sequence, flags, data[at : at + length]
                at += max(length + 3 & ~3, NLMSGHDR.size)

    def request(self, message: bytes) -> list[bytes]:
        """Send one message; the answers to it (whole messages). NetfilterError with the kernel's errno."""
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
        """Send questions that have one answer each, in one system call. The answers (whole messages) in this order;
        None where the kernel has nothing (ENOENT). NetfilterError for any other error."""
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
    """Whole messages as one of pyroute2's classes reads them."""
    messages = [message_class(packet) for packet in packets]
    for message in messages:
        message.decode()
    return messages


def sequence_of(message: bytes) -> int:
    sequence: int = NLMSGHDR.unpack_from(message)[3]
    return sequence


def error_of(packet: bytes) -> int:
    """The errno in a message of type NLMSG_ERROR; 0 if all is well."""
    (code,) = struct.unpack_from("=i", packet, NLMSGHDR.size) if len(packet) >= NLMSGHDR.size + 4 else (-errno.EBADMSG,)
    return -int(code)

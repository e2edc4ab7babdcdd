"""One queue of NFQUEUE: packets that the kernel holds until they get a verdict (linux/netfilter/nfnetlink_queue.h).

The library netfilterqueue reads it wherever it is installed: in the packages and in every test. It has to be compiled,
so `make run` on a fresh machine does without it, and the same few messages are sent and read here
(docs/decisions/0135-tests-and-releases.md).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

from gateway.broker.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSGHDR,
    attribute,
    error_of,
)

NFNL_SUBSYS_QUEUE = 3
NFQNL_MSG_PACKET, NFQNL_MSG_VERDICT, NFQNL_MSG_CONFIG = 0, 1, 2
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
NFQA_CFG_F_FAIL_OPEN = 1
NFQNL_CFG_CMD_BIND, NFQNL_CFG_CMD_UNBIND = 1, 2
NFQNL_COPY_PACKET = 2
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_MARK, NFQA_IFINDEX_INDEV, NFQA_IFINDEX_OUTDEV, NFQA_PAYLOAD = 1, 2, 3, 5, 6, 10
NF_ACCEPT, NF_REPEAT = 1, 4
SO_RCVBUFFORCE = 33

_PACKET = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET
_VERDICT = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT
_CONFIG = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG
_NFGENMSG = struct.Struct(">BBH")  # family, version, number of the queue
_NLATTR = struct.Struct("=HH")
_U32 = struct.Struct(">I")
_VERDICT_HDR = struct.Struct(">II")  # nfqnl_msg_verdict_hdr: verdict, number of the packet
_BODY = NLMSGHDR.size + _NFGENMSG.size  # where attributes begin
_FAIL_OPEN = attribute(NFQA_CFG_MASK, _U32.pack(NFQA_CFG_F_FAIL_OPEN)) + attribute(
    NFQA_CFG_FLAGS, _U32.pack(NFQA_CFG_F_FAIL_OPEN)
)
_ROOM = 1024  # bytes of what comes besides a packet


class QueuedPacket(Protocol):
    """A packet of the queue, as netfilterqueue has it. `accept` and `repeat` give the verdict, with the payload and the
    mark that were set, if any. An accepted packet passes by the rest of the rules of the table where it was queued; a
    repeated one goes through all of them again."""

    mark: int
    indev: int
    outdev: int

    def get_payload(self) -> bytes: ...

    def set_payload(self, payload: bytes) -> None: ...

    def set_mark(self, mark: int) -> None: ...

    def accept(self) -> None: ...

    def repeat(self) -> None: ...


class Queue(Protocol):
    """A queue that is bound until `close`."""

    def fileno(self) -> int:
        """Return the descriptor of the socket, which is readable when a packet waits."""
        ...

    def read(self, most: int, take: Callable[[QueuedPacket], None]) -> None:
        """Call `take` for each packet that waits, `most` of them at most. Never waits."""
        ...

    def close(self) -> None:
        """Give the queue up. The kernel drops packets without a verdict."""
        ...


def open_queue(number: int, waiting: int, length: int, buffer: int, *, opens: bool = False) -> Queue:
    """Bind the queue `number` of this network namespace. Needs CAP_NET_ADMIN.

    `waiting`: the greatest number of packets that the kernel holds. `length`: the greatest number of bytes of a packet
    that are copied. `buffer`: the size of the socket's buffer in bytes. `opens`: packets for which there is no room
    pass; otherwise they are dropped. Raises OSError if the queue cannot be bound (EPERM; EBUSY: another has it).
    """
    if find_spec("netfilterqueue") is not None:
        return LibraryQueue(number, waiting, length, buffer, opens=opens)
    return NetlinkQueue(number, waiting, length, buffer, opens=opens)


class LibraryQueue:
    """A queue that netfilterqueue reads."""

    def __init__(self, number: int, waiting: int, length: int, buffer: int, *, opens: bool = False) -> None:
        from netfilterqueue import COPY_PACKET, NetfilterQueue

        self._queue: Any = NetfilterQueue()
        self._take: Callable[[QueuedPacket], None] = _accept
        self._left = 0
        self._room = bytearray(length + _ROOM)
        self._queue.bind(number, self._on_packet, max_len=waiting, mode=COPY_PACKET, range=length, sock_len=buffer)
        self._fd: int = self._queue.get_fd()
        os.set_blocking(self._fd, False)
        # The library asks for 4,016 bytes of a packet at most.
        os.write(self._fd, _message(_CONFIG, NLM_F_REQUEST, number, attribute(NFQA_CFG_PARAMS, _params(length))))
        if opens:
            os.write(self._fd, _message(_CONFIG, NLM_F_REQUEST, number, _FAIL_OPEN))

    def fileno(self) -> int:
        return self._fd

    def read(self, most: int, take: Callable[[QueuedPacket], None]) -> None:
        self._take, self._left = take, most
        self._queue.run_socket(self)

    def recv(self, size: int) -> bytes:
        """The socket that the library reads from. It seems empty after some packets, so that nothing else waits for
        long. A packet may be longer than `size`, the room that the library has by itself."""
        if self._left <= 0:
            raise BlockingIOError(errno.EAGAIN, "others are waiting")
        self._left -= 1
        length = os.readv(self._fd, (self._room,))
        return bytes(memoryview(self._room)[:length])

    def close(self) -> None:
        self._queue.unbind()

    def _on_packet(self, packet: Any) -> None:
        packet.retain()  # its verdict may come later than the end of this call
        self._take(packet)


def _accept(packet: QueuedPacket) -> None:
    packet.accept()


class Packet:
    """A packet of the queue (`QueuedPacket`).

    `mark`: the packet's own; `indev`, `outdev`: indexes of the interfaces by which it came and is to leave, 0: none.
    """

    def __init__(
        self, queue: NetlinkQueue, number: int, payload: bytes, mark: int = 0, indev: int = 0, outdev: int = 0
    ) -> None:
        self.mark = mark
        self.indev = indev
        self.outdev = outdev
        self._queue = queue
        self._number = number
        self._payload = payload
        self._changed = False
        self._marked: int | None = None

    def get_payload(self) -> bytes:
        """Return the packet, starting with its IP header."""
        return self._payload

    def set_payload(self, payload: bytes) -> None:
        """Replace the packet, starting with its IP header."""
        self._payload = payload
        self._changed = True

    def set_mark(self, mark: int) -> None:
        """Give the packet this mark, with which it goes on."""
        self._marked = mark

    def accept(self) -> None:
        """Let the packet go on. Raises OSError if the kernel does not take that."""
        self._decide(NF_ACCEPT)

    def repeat(self) -> None:
        """Let the packet go through the rules of its table again. Raises OSError if the kernel does not take that."""
        self._decide(NF_REPEAT)

    def _decide(self, verdict: int) -> None:
        self._queue.decide(verdict, self._number, self._payload if self._changed else None, self._marked)


class NetlinkQueue:
    """A queue that is read and answered by netlink messages made here."""

    def __init__(self, number: int, waiting: int, length: int, buffer: int, *, opens: bool = False) -> None:
        self._number = number
        self._room = bytearray(length + _ROOM)
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
            self._configure(NFQA_CFG_CMD, struct.pack(">BBH", NFQNL_CFG_CMD_BIND, 0, _socket.AF_INET))
            self._configure(NFQA_CFG_PARAMS, _params(length))
            self._configure(NFQA_CFG_QUEUE_MAXLEN, struct.pack(">I", waiting))
            if opens:
                self._request(_FAIL_OPEN)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor of the socket, which is readable when a packet waits."""
        return self._socket.fileno()

    def read(self, most: int, take: Callable[[QueuedPacket], None]) -> None:
        """Call `take` for each packet that waits, `most` of them at most. Never waits."""
        for _ in range(most):
            try:
                length = self._socket.recv_into(self._room)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.EINTR):  # packets were lost before they were here
                    continue
                raise
            packet = self._packet(bytes(memoryview(self._room)[:length]))
            if packet is not None:
                take(packet)

    def decide(self, verdict: int, packet: int, payload: bytes | None, mark: int | None = None) -> None:
        """Give the packet with this number its verdict, and another payload and mark if it is to have them."""
        message = _NLATTR.pack(12, NFQA_VERDICT_HDR) + _VERDICT_HDR.pack(verdict, packet)
        if payload is not None:
            message += attribute(NFQA_PAYLOAD, payload)
        if mark is not None:
            message += attribute(NFQA_MARK, _U32.pack(mark))
        self._socket.send(self._message(_VERDICT, NLM_F_REQUEST, message))

    def close(self) -> None:
        """Give the queue up. The kernel drops packets without a verdict."""
        try:
            self._socket.setblocking(True)
            self._configure(NFQA_CFG_CMD, struct.pack(">BBH", NFQNL_CFG_CMD_UNBIND, 0, 0))
        except OSError:
            pass  # the end of the socket does the same
        finally:
            self._socket.close()

    def _packet(self, data: bytes) -> Packet | None:
        """Return the packet in a message of the kernel; None for another message."""
        if len(data) < _BODY or NLMSGHDR.unpack_from(data)[1] != _PACKET:
            return None
        at, end = _BODY, len(data)
        number, payload = -1, b""
        more = {NFQA_MARK: 0, NFQA_IFINDEX_INDEV: 0, NFQA_IFINDEX_OUTDEV: 0}
        while at + 4 <= end:
            size, kind = _NLATTR.unpack_from(data, at)
            if size < 4 or at + size > end:
                break
            if kind == NFQA_PACKET_HDR and size >= 8:
                number = _U32.unpack_from(data, at + 4)[0]
            elif kind == NFQA_PAYLOAD:
                payload = data[at + 4 : at + size]
            elif kind in more and size >= 8:
                more[kind] = _U32.unpack_from(data, at + 4)[0]
            at += size + 3 & ~3
        return (
            Packet(self, number, payload, more[NFQA_MARK], more[NFQA_IFINDEX_INDEV], more[NFQA_IFINDEX_OUTDEV])
            if number >= 0
            else None
        )

    def _configure(self, kind: int, value: bytes) -> None:
        self._request(attribute(kind, value))

    def _request(self, body: bytes) -> None:
        self._socket.send(self._message(_CONFIG, NLM_F_REQUEST | NLM_F_ACK, body))
        while True:
            answer = self._socket.recv(len(self._room))
            if len(answer) >= NLMSGHDR.size and NLMSGHDR.unpack_from(answer)[1] == NLMSG_ERROR:
                break
        if code := error_of(answer):
            raise OSError(code, os.strerror(code))

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        return _message(kind, flags, self._number, body)


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    size = _BODY + len(body)
    return NLMSGHDR.pack(size, kind, flags, 0, 0) + _NFGENMSG.pack(_socket.AF_UNSPEC, 0, number) + body


def _params(length: int) -> bytes:
    """Return the value of NFQA_CFG_PARAMS that asks for so many bytes of each packet."""
    return struct.pack(">IB", length, NFQNL_COPY_PACKET)

"""A socket for a program whose bytes have to be encoded on the wire: one end of a pair, which a thread feeds.

So a program gets a real socket whatever the proxy requires: it can be polled, wrapped in TLS, and passed on by its
descriptor. Where threads are greenlets (gevent's patch), the thread is a greenlet.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from gateway.client.codec import Codec
from gateway.client.sockets import RESET_GRACE, pair, reset

CHUNK = 65536
IDLE = 30  # seconds until it is asked whether the program still has its socket, which only the kernel knows


def protected(wire: socket.socket, codec: Codec, early: bytes) -> socket.socket:
    """Return a socket with the clear text of `wire`, which is taken over and carries what `codec` encodes. `early`
    comes first."""
    near, far = pair(wire.family)
    far.setblocking(False)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(OSError):  # not of TCP
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
    wire.setblocking(False)
    threading.Thread(target=_Pump(wire, far, codec, early).run, name="proxy connection", daemon=True).start()
    return near


class _Pump:
    """Carries both directions. Neither is read while what it has brought is not delivered."""

    def __init__(self, wire: socket.socket, far: socket.socket, codec: Codec, early: bytes) -> None:
        self._wire = wire
        self._far = far
        self._codec = codec
        self._to_wire = bytearray(codec.pending())
        self._to_far = bytearray(early)
        self._wire_ended = codec.ended  # the proxy has said all
        self._far_ended = False  # the program has
        self._wire_shut = self._far_shut = False  # and the other one knows
        self._closed = False  # the program has closed its socket, and wants no answer

    def run(self) -> None:
        try:
            while not (self._wire_shut and (self._far_shut or self._closed)):
                self._step()
        except OSError:  # one of them is gone, and the other one does not take that for an end
            self._break_off()
        finally:
            self._wire.close()
            self._far.close()

    def _break_off(self) -> None:
        """Reset both, behind what had come for them."""
        for sock, held in ((self._far, self._to_far), (self._wire, self._to_wire)):
            with contextlib.suppress(OSError):
                sock.settimeout(RESET_GRACE)
                sock.sendall(held)
            reset(sock)

    def _step(self) -> None:
        self._tell_ends()
        if self._wire_shut and (self._far_shut or self._closed):
            return
        poll = select.poll()
        wire = (0 if self._wire_ended or self._to_far else select.POLLIN) | (select.POLLOUT if self._to_wire else 0)
        far = (0 if self._far_ended or self._to_wire else select.POLLIN) | (select.POLLOUT if self._to_far else 0)
        # What is not waited for is not watched: a hang-up is told in any case, and again and again. But a program that
        # has said all may close its socket, and with it what it waits for.
        if wire:
            poll.register(self._wire.fileno(), wire)
        if far or (self._far_ended and not self._far_shut and not self._closed):
            poll.register(self._far.fileno(), far)
        for descriptor, happened in poll.poll():
            broken = happened & (select.POLLERR | select.POLLHUP)  # reading or writing finds out what it is
            ready = select.POLLIN | select.POLLOUT if broken else happened
            if descriptor == self._wire.fileno():
                self._serve_wire(wire & ready)
            elif far:
                self._closed = self._closed or bool(happened & select.POLLHUP)
                self._serve_far(far & ready)
            else:
                raise ConnectionResetError("the program has closed its socket")

    def _serve_wire(self, ready: int) -> None:
        if ready & select.POLLOUT:
            del self._to_wire[: self._wire.send(self._to_wire)]
        if ready & select.POLLIN:
            data = self._wire.recv(CHUNK)
            if data:
                self._to_far += self._codec.feed(data)
                self._to_wire += self._codec.pending()
            else:
                self._codec.feed_eof()
            self._wire_ended = not data or self._codec.ended

    def _serve_far(self, ready: int) -> None:
        if ready & select.POLLOUT:
            del self._to_far[: self._far.send(self._to_far)]
        if ready & select.POLLIN:
            data = self._far.recv(CHUNK)
            if data:
                self._to_wire += self._codec.seal(data)
            else:
                self._far_ended = True
                self._to_wire += self._codec.finish()

    def _tell_ends(self) -> None:
        if self._wire_ended and not self._to_far and not self._far_shut:
            self._far_shut = True
            self._far.shutdown(socket.SHUT_WR)
        if self._far_ended and not self._to_wire and not self._wire_shut:
            self._wire_shut = True
            self._wire.shutdown(socket.SHUT_WR)

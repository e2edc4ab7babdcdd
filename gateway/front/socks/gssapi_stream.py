"""Per-message protection (RFC 1961 section 5) of a client's stream and datagrams: each message is in a token."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import gevent.socket as gsocket

from alg.socks.gssapi import HEADER, MessageType, encode_message, parse_message
from alg.socks.socks5 import SocksError
from gateway.front.socks.gssapi import GssapiContext
from gateway.net.relay.copy import EncodedSocket
from gateway.net.slices import slices

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

READ_SIZE = 65536


class DatagramProtection:
    """The protection of a UDP association's datagrams: each is one message."""

    def __init__(self, context: GssapiContext) -> None:
        self._context = context

    def wrap(self, data: bytes) -> bytes:
        """Encapsulate a datagram. Raises ValueError if it is too long."""
        return encode_message(MessageType.ENCAPSULATION, self._context.wrap(data))

    def unwrap(self, datagram: bytes) -> bytes:
        """Return the contents of a datagram. Raises ValueError for anything that is not exactly one valid message."""
        try:
            found = parse_message(datagram, MessageType.ENCAPSULATION)
        except SocksError as error:
            raise ValueError(str(error)) from None
        if found is None or found[1] != len(datagram):
            raise ValueError("not one whole message")
        return self._context.unwrap(found[0])


class ProtectedSocket(EncodedSocket):
    """A client's socket after the negotiation: `recv` and `send` use clear text, and the wire is protected.

    It is made from the plain socket, which it takes over, and from what has come on it already. One greenlet may
    receive while another one sends. A message that is not the client's raises ConnectionError.
    """

    def __init__(self, plain: gsocket.socket, context: GssapiContext, received: bytes) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._context = context
        self._piece = context.piece()
        self._wire = bytearray(received)
        self._clear = bytearray()

    def recv(self, size: int, *args: Any) -> bytes:
        """Receive at most `size` bytes; b"" at the end of the stream, which must not be within a message."""
        while not self._clear:
            if self._decode():
                if slices().over:  # a message may be empty: a client that sends only such ones keeps us here
                    slices().wait()
            else:
                data = super().recv(READ_SIZE, *args)
                if not data:
                    if self._wire:
                        raise ConnectionError("the stream ends within a message")
                    return b""
                self._wire += data
        part = bytes(self._clear[:size])
        del self._clear[:size]
        return part

    def send(self, data: Buffer, *args: Any) -> int:
        """Send one message, and return how many bytes of `data` are in it."""
        part = bytes(memoryview(data)[: self._piece])
        wire = memoryview(encode_message(MessageType.ENCAPSULATION, self._context.wrap(part)))
        while wire:  # not by sendall: that one comes back here
            wire = wire[super().send(wire, *args) :]
        return len(part)

    def sendall(self, data: Buffer, *args: Any) -> None:
        view = memoryview(data)
        for start in range(0, len(view), self._piece):
            self.send(view[start : start + self._piece])

    def _decode(self) -> bool:
        """Decode one message of what has come. Returns whether there was a whole one."""
        if len(self._wire) < HEADER:
            return False
        end = HEADER + int.from_bytes(self._wire[2:HEADER], "big")
        began = perf_counter()
        try:
            found = parse_message(bytes(self._wire[:end]), MessageType.ENCAPSULATION)
            if found is None:
                return False
            token, used = found
            self._clear += self._context.unwrap(token)
        except (SocksError, ValueError) as error:
            raise ConnectionError(str(error)) from None
        del self._wire[:used]
        slices().spend(perf_counter() - began)
        return True

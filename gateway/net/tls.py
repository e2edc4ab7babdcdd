"""TLS over a socket: at the listener for clients, and on the way to an upstream.

OpenSSL works on bytes in memory, and the socket is gevent's own, so a peer that is slow makes one greenlet wait and
nothing else. The bytes of a flow are copied (`relay.copy`). Kernel TLS would let them be spliced; it needs OpenSSL on
the descriptor itself, a Python that can ask for it (3.12), and a kernel with CONFIG_TLS.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import gevent.socket as gsocket
from gevent.lock import Semaphore

from gateway.net.relay.copy import EncodedSocket
from gateway.net.slices import slices

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

T = TypeVar("T")

READ_SIZE = 65536
PIECE = 65536  # bytes that are encrypted at once: four records


MOST_WAITING = 1 << 20  # bytes that a peer may cause beside what is sent to it, before it is read no more


class TlsError(ConnectionError):
    """The handshake failed, or what comes is not the peer's. The message is OpenSSL's reason."""


class TlsSocket(EncodedSocket):
    """A connected socket inside TLS: `recv` and `send` use clear text. Made from the plain socket, which it takes over;
    call `handshake` first.

    One greenlet may receive while another one sends. A stream that ends without the peer's close_notify may have been
    cut by anybody on the way, so that is an error and no end.
    """

    def __init__(self, plain: gsocket.socket, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """`server_name`: the name that the certificate of the server must have; None: this is the server's side."""
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._wire = bytearray()  # encrypted, and not sent yet
        self._sending = Semaphore()
        self._clear = bytearray()  # read before our direction was ended
        self._ended = False  # the peer's direction
        self._shut = False  # that ours has ended

    def handshake(self) -> None:
        """Make the handshake. The caller limits its time. Raises TlsError (the peer is told why), OSError."""
        while True:
            slices().wait()  # a step takes up to a millisecond or two, and a client may have many connections ready
            try:
                done = self._work(self._shake)
            except TlsError:
                self._flush()  # the alert
                raise
            self._flush()
            if done:
                return
            self._receive()

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """The valid certificate of the peer as `ssl.SSLSocket.getpeercert` returns it; empty if there was none."""
        return dict(self._tls.getpeercert() or {})

    def plain(self) -> gsocket.socket:
        """Return the socket without TLS, which takes this one over."""
        return gsocket.socket(self.family, self.type, self.proto, self.detach())

    def recv(self, size: int, *args: Any) -> bytes:
        """Receive at most `size` bytes; b"" at the end of the stream."""
        while True:
            if self._clear:
                part = bytes(self._clear[:size])
                del self._clear[:size]
                return part
            if self._ended:
                return b""
            data = self._read(size)
            if data:
                return data
            if data is None:
                self._answer()
                self._receive(*args)
                if slices().over:  # a record may be empty: a client that sends only such ones keeps us here
                    slices().wait()

    def send(self, data: Buffer, *args: Any) -> int:
        """Send the beginning of `data`, and return how many bytes that were. Raises TlsError, OSError."""
        part = memoryview(data)[:PIECE]
        if not part:
            return 0
        if self._work(lambda: self._tls.write(part)) is None:  # only while TLS 1.2 negotiates again, which is refused
            raise TlsError("nothing can be sent in the middle of a handshake")
        self._flush()
        return len(part)

    def sendall(self, data: Buffer, *args: Any) -> None:
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def shutdown(self, how: int) -> None:
        """End a direction. The end of ours alone is told to the peer inside TLS too, which may wait; the end of both is
        not, so that may be called in the hub."""
        if how == gsocket.SHUT_WR and not self._shut:
            self._shut = True
            while not self._ended and (data := self._read(READ_SIZE)):
                self._clear += data  # OpenSSL takes data behind its close_notify for an error, unless it is read before
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the peer goes on, or there was no handshake
            self._flush()
        super().shutdown(how)

    def _shake(self) -> bool:
        self._tls.do_handshake()
        return True

    def _read(self, size: int) -> bytes | None:
        """Decrypt at most `size` bytes of what has come; b"" at the end, None if more has to come. Raises TlsError."""
        try:
            data = self._work(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            data = b""
        self._ended = data == b""
        return data

    def _work(self, step: Callable[[], T]) -> T | None:
        """Let OpenSSL work on what has come. Returns None if it needs more. Raises TlsError, SSLZeroReturnError."""
        began = perf_counter()
        try:
            return step()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise TlsError(f"certificate: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise TlsError(str(error.reason or error).lower().replace("_", " ")) from None
        finally:
            slices().spend(perf_counter() - began)

    def _receive(self, *args: Any) -> None:
        wire = super().recv(READ_SIZE, *args)
        if not wire:
            raise TlsError("the stream ends without a close_notify")
        self._incoming.write(wire)

    def _answer(self) -> None:
        """Send what OpenSSL itself has to answer while it reads, such as an update of keys. If our own data wait,
        because the peer reads only when it is read, the answer is sent behind them, without waiting here."""
        self._wire += self._outgoing.read()
        if not self._sending.locked() or len(self._wire) > MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Send what OpenSSL has encoded, in order, whichever call has caused it."""
        self._wire += self._outgoing.read()
        if not self._wire:
            return
        with self._sending:
            while self._wire:
                sent = super().send(bytes(self._wire))
                del self._wire[:sent]

"""TLS to a proxy: the handshake, as steps, and the codec of what follows it."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from typing import Any

from alg.socks.errors import ProxyError
from gateway.client.proxy import Proxy
from gateway.client.session import Protect, Receive, Send, Step


def handshake(proxy: Proxy) -> Generator[Step, Any, None]:
    """Return the steps of the TLS handshake with a proxy, whose certificate has to be valid."""
    try:
        context = ssl.create_default_context(cafile=proxy.ca or None)
        if proxy.certificate:
            context.load_cert_chain(proxy.certificate)
    except OSError as error:
        raise ProxyError("failed", f"{proxy.ca} {proxy.certificate}: {error}") from error
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    stream = context.wrap_bio(incoming, outgoing, server_hostname=proxy.name or proxy.host)
    while True:
        try:
            stream.do_handshake()
        except ssl.SSLWantReadError:
            if outgoing.pending:
                yield Send(outgoing.read())
            received = yield Receive(65536)
            if not received:
                raise ProxyError("failed", "it closed the connection within the TLS handshake") from None
            incoming.write(received)
        except ssl.SSLCertVerificationError as error:
            raise ProxyError("denied", f"its certificate: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise ProxyError("failed", f"TLS: {error.reason or error}") from error
        else:
            break
    if outgoing.pending:
        yield Send(outgoing.read())
    codec = TlsCodec(stream, incoming, outgoing)
    yield Protect(codec, codec.feed(b""))


class TlsCodec:
    """A TLS connection after its handshake."""

    def __init__(self, stream: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._stream = stream
        self._incoming = incoming
        self._outgoing = outgoing
        self.ended = False

    def feed(self, wire: bytes) -> bytes:
        self._incoming.write(wire)
        clear = bytearray()
        try:
            while data := self._stream.read(65536):
                clear += data
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise ConnectionAbortedError(f"TLS: {error.reason or error}") from error
        return bytes(clear)

    def feed_eof(self) -> None:
        if not self.ended:  # anybody on the way can make an end of TCP
            raise ConnectionAbortedError("TLS: an end without close_notify")

    def seal(self, clear: bytes) -> bytes:
        try:
            self._stream.write(clear)
        except ssl.SSLError as error:
            raise ConnectionAbortedError(f"TLS: {error.reason or error}") from error
        return self._outgoing.read()

    def pending(self) -> bytes:
        return self._outgoing.read()

    def finish(self) -> bytes:
        try:
            self._stream.unwrap()
        except ssl.SSLError:
            pass  # the other side goes on
        return self._outgoing.read()

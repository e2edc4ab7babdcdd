"""The layer between a program's bytes and the wire: TLS, or GSSAPI's protection of messages (RFC 1961 section 5)."""

from __future__ import annotations

from typing import Protocol

from alg.socks.gssapi import HEADER, Level, Mechanism, MessageType, encode_message, parse_message
from alg.socks.socks5 import SocksError

PIECE = 16384  # bytes of the program's that one message carries


class Codec(Protocol):
    """A codec of one connection. Methods raise ConnectionError for bytes that are not valid on the wire."""

    def feed(self, wire: bytes) -> bytes:
        """Decode bytes from the wire, and return the program's bytes."""
        ...

    def feed_eof(self) -> None:
        """The wire has ended. Raises ConnectionError if that is no end which the other side has made."""
        ...

    def seal(self, clear: bytes) -> bytes:
        """Encode the program's bytes for the wire."""
        ...

    def pending(self) -> bytes:
        """Return bytes that have to be sent although the program has sent nothing."""
        ...

    def finish(self) -> bytes:
        """Return the bytes that tell the other side that the program has ended its direction."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the other side has ended its direction."""
        ...


class GssapiCodec:
    """Protects a stream by GSSAPI: each message is one token."""

    ended = False

    def __init__(self, mechanism: Mechanism, level: Level) -> None:
        self._mechanism = mechanism
        self._level = level
        self._wire = bytearray()

    def feed(self, wire: bytes) -> bytes:
        self._wire += wire
        clear = bytearray()
        try:
            while len(self._wire) >= HEADER:
                end = HEADER + int.from_bytes(self._wire[2:HEADER], "big")
                found = parse_message(bytes(self._wire[:end]), MessageType.ENCAPSULATION)
                if found is None:
                    break
                clear += self._mechanism.unwrap(found[0], self._level)
                del self._wire[:end]
        except (SocksError, ValueError) as error:
            raise ConnectionAbortedError(str(error)) from error
        return bytes(clear)

    def feed_eof(self) -> None:
        if self._wire:
            raise ConnectionAbortedError("an end within a message")

    def seal(self, clear: bytes) -> bytes:
        pieces = (clear[start : start + PIECE] for start in range(0, len(clear), PIECE))
        return b"".join(
            encode_message(MessageType.ENCAPSULATION, self._mechanism.wrap(piece, self._level)) for piece in pieces
        )

    def pending(self) -> bytes:
        return b""

    def finish(self) -> bytes:
        return b""

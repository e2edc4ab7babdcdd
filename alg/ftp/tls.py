"""Finds where TLS ends on an FTP control connection: CCC makes it clear text again (RFC 4217, 11 and 12.3).

The contents of the records, CCC included, stay unread. But each TLS record says how long it is, so a reader that has
followed them from the first one on knows for sure where the next one has to begin. A byte there that begins no record
can only be clear text: a receiver that still used TLS would end the connection at it. The records need not be trusted
for that, because two ends that forge records could have used clear text from the start.
"""

from __future__ import annotations

_HANDSHAKE, _APPLICATION = 22, 23
_TYPES = range(20, 25)  # RFC 5246, 6.2.1; RFC 6520
_LONGEST = 16384 + 2048  # RFC 5246, 6.2.3
_HEADER = 5


class TlsStream:
    """One direction, from the first byte behind the reply that agreed to AUTH."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0  # bytes of the present record
        self._began = False
        self._spoke = False  # something encrypted has been said
        self.broken = False  # not TLS: nothing can be known about it any more

    def clear_from(self, data: bytes) -> int | None:
        """Follow `data`, and return the place in it where clear text begins, or None. Must not be called again after it
        returned a place."""
        at = 0
        while at < len(data) and not self.broken:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            if not self._header and self._spoke and data[at] not in _TYPES:
                return at
            piece = data[at : at + _HEADER - len(self._header)]
            self._header += piece
            at += len(piece)
            self._read_header()
        return None

    def _read_header(self) -> None:
        header = self._header
        first = _TYPES if self._began else (_HANDSHAKE,)
        if header[0] not in first or (len(header) > 1 and header[1] != 3):
            self.broken = True
        elif len(header) == _HEADER:
            self._left = int.from_bytes(header[3:], "big")
            self.broken = not 0 < self._left <= _LONGEST
            self._began = True
            self._spoke = self._spoke or header[0] == _APPLICATION
            header.clear()

"""The messages of a control connection (RFC 2637, 2): where each ends, and the call IDs in it."""

from __future__ import annotations

import struct
from enum import IntEnum

MAGIC = 0x1A2B3C4D
CONTROL = 1
"""The message type of control messages. The only other type, management, was never defined."""

CONNECTED = 1
"""The result code of a connection or call that is granted."""

LONGEST = 512
"""Bytes of a message at most; the longest that there is has 220 (Incoming-Call-Request)."""

_HEADER = struct.Struct(">HHIH")  # length, PPTP message type, magic cookie, control message type
_ID = struct.Struct(">H")
FIRST, SECOND = 12, 14
"""The places of call IDs in a message: the first one is behind the header and two reserved bytes, the second one behind
it."""


class MessageType(IntEnum):
    """Types of control messages that this module looks at."""

    START_REQUEST = 1
    START_REPLY = 2
    STOP_REPLY = 4
    OUTGOING_CALL_REQUEST = 7
    OUTGOING_CALL_REPLY = 8
    INCOMING_CALL_REQUEST = 9
    CALL_CLEAR_REQUEST = 12
    CALL_DISCONNECT_NOTIFY = 13
    WAN_ERROR_NOTIFY = 14
    SET_LINK_INFO = 15


class NotPptp(Exception):
    """Raised for bytes that are no control message of PPTP."""


class MessageBuffer:
    """Collects the bytes of one side and cuts them into whole messages."""

    def __init__(self) -> None:
        self._held = b""

    def __len__(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> None:
        """Add bytes that came from the side."""
        self._held += data

    def take(self) -> bytes | None:
        """Take the next message; None: it is not whole yet. Raises NotPptp as soon as that shows."""
        known = self._held[: _HEADER.size]
        magic = struct.pack(">HI", CONTROL, MAGIC)
        if known[2:8] != magic[: max(0, len(known) - 2)]:
            raise NotPptp
        if len(known) >= 2:
            length = _ID.unpack_from(known)[0]
            if not _HEADER.size <= length <= LONGEST:
                raise NotPptp
            if len(self._held) >= length:
                message, self._held = self._held[:length], self._held[length:]
                return message
        return None

    def release(self) -> bytes:
        """Take all that is there."""
        held, self._held = self._held, b""
        return held


def kind_of(message: bytes) -> int:
    """Return the control message type."""
    return int(_HEADER.unpack_from(message)[3])


def number_at(message: bytes, at: int) -> int | None:
    """Return the call ID at `FIRST` or `SECOND`; None if the message is too short."""
    return int(_ID.unpack_from(message, at)[0]) if len(message) >= at + _ID.size else None


def result_of(message: bytes) -> int | None:
    """Return the result code of a reply: the byte behind the call IDs, or behind the version; None if it is missing."""
    at = SECOND if kind_of(message) == MessageType.START_REPLY else SECOND + _ID.size
    return message[at] if len(message) > at else None


def packed(number: int) -> bytes:
    """Return a call ID as a message has it."""
    return _ID.pack(number)

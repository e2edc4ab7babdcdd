"""Requests of TFTP: the only datagrams that begin a transfer (RFC 1350, section 5; options: RFC 2347)."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 512  # bytes of a request (RFC 2347, "Packet Formats")

# Opcode 1 (read) or 2 (write), a file name, a mode. What decides is read strictly; options are not ours.
_REQUEST = re.compile(rb"\x00([\x01\x02])([^\x00]+)\x00(netascii|octet|mail)\x00", re.IGNORECASE)
_MULTICAST = re.compile(rb"(?:[^\x00]*\x00[^\x00]*\x00)*?multicast\x00", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to read or to write. `multicast`: it asks for the option of RFC 2090."""

    write: bool
    multicast: bool


def read_request(data: bytes) -> Request | None:
    """Read a request. Returns None for any other datagram, and for a request that no server would understand. Of the
    options only `multicast` is read. The last option may lack its end, because clients of boot ROMs send it both with
    and without."""
    if len(data) > LONGEST:
        return None
    found = _REQUEST.match(data)
    if found is None:
        return None
    return Request(found[1] == b"\x02", _MULTICAST.match(data, found.end()) is not None)

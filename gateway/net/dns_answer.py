"""What of a name server's answer is read: no more than takes a few milliseconds. Pure.

dnspython reads all of a message, and needs 50 us for a record, 2.5 us for each label of its owner, and for a name in
its data 1.2 us for the square of its labels: 4 KiB of CNAMEs took 1.4 s. So a message is cut behind the records for
which there is time, and what was not asked for is given a type whose data nobody reads.
"""

from __future__ import annotations

import struct

import dns.exception
from dns.rdataclass import IN
from dns.rdatatype import AAAA, CNAME, OPT, PTR, SOA, A

MOST_WORK = 5000.0  # microseconds, about
PER_RECORD, PER_LABEL, PER_SQUARE = 50.0, 2.5, 1.2
MOST_STEPS = 255  # labels and pointers of a name
LONGEST_OPT = 64  # bytes
OPAQUE = struct.pack("!H", 0xFF00)  # a type for private use (RFC 6895, 3.1)

_COUNTS = struct.Struct("!4H")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_COUNTS_AT, _HEADER = 4, 12
_POINTER = 0xC0
_NAMES = {CNAME: 1, PTR: 1, SOA: 2}  # how many names their data begin with


def shortened(wire: bytes) -> bytes:
    """Return a message with as many records of it as may be read. Raises FormError for bytes that are none."""
    try:
        return _shortened(wire)
    except (IndexError, struct.error):
        raise dns.exception.FormError from None


def _shortened(wire: bytes) -> bytes:
    counts = list(_COUNTS.unpack_from(wire, _COUNTS_AT))
    if counts[0] > 1:  # who asks has asked one
        raise dns.exception.FormError
    data = bytearray(wire)
    at, work = _HEADER, 0.0
    if counts[0]:
        at = _name(wire, at)[0] + 4
    for section in (1, 2, 3):
        for number in range(counts[section]):
            begin = at
            at, steps = _name(wire, at)
            kind, of_class, _, size = _RECORD.unpack_from(wire, at)
            work += PER_RECORD + PER_LABEL * steps
            behind = at + _RECORD.size
            if of_class == IN and kind in _NAMES:
                for _ in range(_NAMES[kind]):
                    behind, steps = _name(wire, behind)
                    work += PER_SQUARE * steps * steps
            elif not (of_class == IN and kind in (A, AAAA)) and not (kind == OPT and size <= LONGEST_OPT):
                data[at : at + 2] = OPAQUE
            if work > MOST_WORK:
                counts[section:] = [number, *[0] * (3 - section)]
                _COUNTS.pack_into(data, _COUNTS_AT, *counts)
                return bytes(data[:begin])
            at += _RECORD.size + size
    return bytes(data)


def _name(wire: bytes, at: int) -> tuple[int, int]:
    """Return where a name (RFC 1035, 4.1.4) ends, and how many labels and pointers it has."""
    end = steps = 0
    while length := wire[at]:
        steps += 1
        if steps > MOST_STEPS:
            raise dns.exception.FormError
        if length >= _POINTER:
            end = end or at + 2
            at = (length & ~_POINTER) << 8 | wire[at + 1]
        else:
            at += 1 + length
    return end or at + 1, steps

"""Where the packets process keeps what its successor has to know: memory that the supervisor holds.

Two files of which one is in use: entries are appended to it, and when much of it is out of date the other one is
written anew. A file begins with its age and the length of what is whole; what a dead process left behind that does not
count.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from alg.sip.journal import CallRecord, ConversationRecord, Entry, Record, TalkRecord
from gateway.model.requests import Lease

SLACK = 1024 * 1024  # bytes out of date that are worth no rewriting

_HEAD = struct.Struct("=QQ")  # age (0: never written), bytes behind this that count
_LENGTH = struct.Struct("=I")


class _Stored(msgspec.Struct, array_like=True, omit_defaults=True):
    """An entry in the file; nothing but a key: it is no more."""

    key: str
    conversation: ConversationRecord | None = None
    call: CallRecord | None = None
    talk: TalkRecord | None = None
    lease: Lease | None = None

    @property
    def record(self) -> Record | None:
        return self.conversation or self.call or self.talk


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


class Journal:
    """The journal in two memory files. `found`: the records of the predecessor, with the leases of its conversations.

    What cannot be read (another version wrote it) counts as nothing.
    """

    def __init__(self, files: Sequence[int]) -> None:
        self._files = tuple(files)
        self._age, self._current = max((_head(fd)[0], index) for index, fd in enumerate(files))
        self._live: dict[str, bytes] = {}
        self._size = 0  # of what is live
        self.found: list[tuple[Record, Lease | None]] = []
        stored: dict[str, _Stored] = {}
        try:
            for one in _read(self._files[self._current]):
                stored.pop(one.key, None)
                stored[one.key] = one
        except (msgspec.DecodeError, msgspec.ValidationError, struct.error):
            stored.clear()
        for one in stored.values():
            if one.record is not None:
                self.found.append((one.record, one.lease))
                self._keep(one.key, _encoder.encode(one))
        self._rewrite()

    def put(self, entries: Iterable[tuple[Entry, Lease | None]]) -> None:
        """Store entries, with the leases of conversations; they count when this returns, all or none."""
        written = b""
        for entry, lease in entries:
            record = entry.record
            if record is None and entry.key not in self._live:
                continue
            data = _encoder.encode(
                _Stored(
                    entry.key,
                    record if isinstance(record, ConversationRecord) else None,
                    record if isinstance(record, CallRecord) else None,
                    record if isinstance(record, TalkRecord) else None,
                    lease,
                )
            )
            self._keep(entry.key, data if record is not None else None)
            written += _LENGTH.pack(len(data)) + data
        if not written:
            return
        if self._end + len(written) > 2 * self._size + SLACK:
            self._rewrite()
        else:
            self._append(written)

    def _keep(self, key: str, data: bytes | None) -> None:
        self._size -= len(self._live.pop(key, b""))
        if data is not None:
            self._live[key] = data
            self._size += len(data)

    def _append(self, data: bytes) -> None:
        fd = self._files[self._current]
        os.pwrite(fd, data, _HEAD.size + self._end)
        self._end += len(data)
        os.pwrite(fd, _HEAD.pack(self._age, self._end), 0)

    def _rewrite(self) -> None:
        """Write what is live to the other file, which counts from when its head is written."""
        self._current = 1 - self._current
        self._age += 1
        self._end = 0
        os.ftruncate(self._files[self._current], 0)
        self._append(b"".join(_LENGTH.pack(len(data)) + data for data in self._live.values()))


def _head(fd: int) -> tuple[int, int]:
    data = os.pread(fd, _HEAD.size, 0)
    if len(data) < _HEAD.size:
        return 0, 0
    age, end = _HEAD.unpack(data)
    return age, end


def _read(fd: int) -> Iterator[_Stored]:
    _, end = _head(fd)
    data = os.pread(fd, end, _HEAD.size) if end else b""
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield _decoder.decode(data[at : at + length])
        at += length

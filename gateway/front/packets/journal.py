"""The journal of the packets process for its successor: memory that the supervisor holds.

There are two files, of which one is in use: entries are appended to it, and when much of it is out of date the other
one is written anew. A file begins with its age and the length of its complete part; an entry that a dead process left
unfinished does not count. The contents of a record are the module's own matter (`alg.datagrams.Entry`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gateway.model.requests import Lease

SLACK = 1024 * 1024  # bytes out of date that are worth no rewriting

_HEAD = struct.Struct("=QQ")  # age (0: never written), bytes behind this that count
_LENGTH = struct.Struct("=I")


class Stored(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """The state of `key` of a module. `record` None: the key was deleted.

    `ref`: the conversation that the record describes, with its pinhole `lease`; `read`: whether the module reads its
    datagrams; `server`: the outside host with which it began, "" if that is not known.
    """

    module: str
    key: str
    record: bytes | None = None
    ref: int | None = None
    lease: Lease | None = None
    read: bool = False
    server: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Stored)
_Name = tuple[str, str]


class Journal:
    """The journal in two memory files. `found`: the entries of the predecessor.

    What cannot be read (another version wrote it) is ignored.
    """

    def __init__(self, files: Sequence[int]) -> None:
        self._files = tuple(files)
        self._age, self._current = max((_head(fd)[0], index) for index, fd in enumerate(files))
        self._live: dict[_Name, bytes] = {}
        self._size = 0  # of what is live
        stored: dict[_Name, Stored] = {}
        try:
            for entry in _read(self._files[self._current]):
                stored.pop((entry.module, entry.key), None)
                stored[entry.module, entry.key] = entry
        except (msgspec.DecodeError, msgspec.ValidationError, struct.error):
            stored.clear()
        self.found = [entry for entry in stored.values() if entry.record is not None]
        for entry in self.found:
            self._keep(entry, _encoder.encode(entry))
        self._rewrite()

    def put(self, entries: Iterable[Stored]) -> None:
        """Store entries. They count when this returns, all or none."""
        written = bytearray()
        for entry in entries:
            if entry.record is None and (entry.module, entry.key) not in self._live:
                continue
            data = _encoder.encode(entry)
            self._keep(entry, data if entry.record is not None else None)
            written += _LENGTH.pack(len(data)) + data
        if not written:
            return
        if self._end + len(written) > 2 * self._size + SLACK:
            self._rewrite()
        else:
            self._append(bytes(written))

    def _keep(self, entry: Stored, data: bytes | None) -> None:
        name = entry.module, entry.key
        self._size -= len(self._live.pop(name, b""))
        if data is not None:
            self._live[name] = data
            self._size += len(data)

    def _append(self, data: bytes) -> None:
        fd = self._files[self._current]
        os.pwrite(fd, data, _HEAD.size + self._end)
        self._end += len(data)
        os.pwrite(fd, _HEAD.pack(self._age, self._end), 0)

    def _rewrite(self) -> None:
        """Write the live entries to the other file, which counts as soon as its head is written."""
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


def _read(fd: int) -> Iterator[Stored]:
    _, end = _head(fd)
    data = os.pread(fd, end, _HEAD.size) if end else b""
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield _decoder.decode(data[at : at + length])
        at += length

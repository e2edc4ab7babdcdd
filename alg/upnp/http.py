"""Requests of HTTP/1.0 and 1.1, read from a stream, and answers (RFC 9110, 9112). The heads of SSDP are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alg.upnp.errors import REASONS, HttpError

LONGEST_HEAD = 8192  # bytes, with its empty line
LONGEST_BODY = 8192
LONGEST_CHUNK_LINE = 256
MOST_HEADERS = 64

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_START = re.compile(r"([A-Z-]{1,32}) ([!-~]{1,2048}) HTTP/(\d)\.(\d)")
_LENGTH = re.compile(r"[0-9]{1,10}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
# Two of these could mean two things.
_SINGLE = {"host", "content-length", "transfer-encoding", "soapaction", "origin", "sid", "nt", "callback", "expect"}


class Request(NamedTuple):
    """A request: `target` as it stands there, `minor` of its version 1.x, the headers by their names in lower case."""

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def keeps(self) -> bool:
        """Whether the client wants to ask more on this connection (RFC 9112, section 9.3)."""
        tokens = {word.strip().lower() for word in self.headers.get("connection", "").split(",")}
        return "close" not in tokens and (self.minor >= 1 or "keep-alive" in tokens)


def read_head(head: bytes) -> tuple[str, str, int, dict[str, str]]:
    """Read a request line and headers, lines that end in CR LF or LF: the method, target, minor version and headers.
    Raises HttpError."""
    lines = head.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    start = _START.fullmatch(lines[0])
    if start is None:
        raise HttpError(400)
    if start[3] != "1":
        raise HttpError(505)
    if len(lines) > MOST_HEADERS + 1:
        raise HttpError(431)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or _TOKEN.fullmatch(name) is None or _CONTROL.search(value):
            raise HttpError(400)
        name = name.lower()
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            raise HttpError(400)
        else:
            headers[name] += f", {value}"
    return start[1], start[2], int(start[4]), headers


class RequestReader:
    """Cuts a stream into requests. Bytes go in with `feed`, and `next` is called until it returns None.

    It holds at most a head and a body, if no more than READ bytes are fed at a time. After an error nothing more can be
    read. The cost is linear in the bytes.
    """

    READ = 4096

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0  # bytes in which no end of a head was found
        self._head: Request | None = None
        self._left: int | None = None  # bytes of the body or chunk that are missing; None: chunks, at a line of theirs
        self._chunked = False
        self._trailer = 0  # bytes of trailers; 0: none yet
        self._body = bytearray()
        self._asked = False

    @property
    def begun(self) -> bool:
        """Whether a part of a request is there."""
        return bool(self._data) or self._head is not None

    def feed(self, data: bytes) -> None:
        """Add bytes that came from the client."""
        self._data += data

    def waits_for_continue(self) -> bool:
        """Whether the client waits for "100 Continue" before it sends the body. True once for each request."""
        asks, self._asked = self._asked, False
        return asks

    def next(self) -> Request | None:
        """Return the next request that is whole. Raises HttpError."""
        if self._head is None and not self._read_head():
            return None
        if not (self._read_chunks() if self._chunked else self._read_body()):
            return None
        assert self._head is not None
        request = self._head._replace(body=bytes(self._body))
        self._head = None
        self._body.clear()
        self._asked = False
        return request

    def _read_head(self) -> bool:
        # Empty lines before a request are let pass (RFC 9112, section 2.2).
        while self._data.startswith((b"\r", b"\n")) and not self._searched:
            del self._data[:1]
        end = _end_of_head(self._data, max(0, self._searched - 3))
        if end < 0:
            self._searched = len(self._data)
            if self._searched > LONGEST_HEAD:
                raise HttpError(431)
            return False
        if end > LONGEST_HEAD:
            raise HttpError(431)
        head = bytes(self._data[:end])
        del self._data[:end]
        self._searched = 0
        method, target, minor, headers = read_head(head)
        self._head = Request(method, target, minor, headers)
        self._chunked, self._left = _length(headers)
        self._trailer = 0
        expects = headers.get("expect")
        if expects is not None and expects.lower() != "100-continue":
            raise HttpError(417)
        self._asked = expects is not None and minor >= 1 and self._left != 0
        return True

    def _read_body(self) -> bool:
        assert self._left is not None
        part = self._data[: self._left]
        self._body += part
        del self._data[: len(part)]
        self._left -= len(part)
        return not self._left

    def _read_chunks(self) -> bool:
        while True:
            if self._trailer:
                return self._read_trailers()
            if self._left is not None:  # a chunk, and the end of its line
                if self._left:
                    self._read_body()
                if self._left or not self._read_line_end():
                    return False
                self._left = None
            size = self._read_size()
            if size is None:
                return False
            if size == 0:
                self._trailer = 1
            elif len(self._body) + size > LONGEST_BODY:
                raise HttpError(413)
            else:
                self._left = size

    def _read_line_end(self) -> bool:
        if self._data.startswith(b"\n"):
            del self._data[:1]
        elif self._data.startswith(b"\r\n"):
            del self._data[:2]
        elif len(self._data) > 1 or not b"\r".startswith(self._data):
            raise HttpError(400)
        else:
            return False
        return True

    def _read_size(self) -> int | None:
        end = self._data.find(b"\n", 0, LONGEST_CHUNK_LINE) + 1
        if not end:
            if len(self._data) >= LONGEST_CHUNK_LINE:
                raise HttpError(400)
            return None
        found = _CHUNK.fullmatch(bytes(self._data[:end]))
        if found is None:
            raise HttpError(400)
        del self._data[:end]
        return int(found[1], 16)

    def _read_trailers(self) -> bool:
        """Leave out what stands behind the last chunk, up to an empty line."""
        while True:
            end = self._data.find(b"\n", 0, LONGEST_HEAD) + 1
            if not end:
                if len(self._data) >= LONGEST_HEAD:
                    raise HttpError(431)
                return False
            line = bytes(self._data[:end])
            del self._data[:end]
            if line in (b"\n", b"\r\n"):
                return True
            self._trailer += len(line)
            if self._trailer > LONGEST_HEAD:
                raise HttpError(431)


def _end_of_head(data: bytearray, start: int) -> int:
    """Return the place at which the empty line of a head ends, or -1. Lines may end in LF alone."""
    ends = []
    for mark in (b"\n\n", b"\n\r\n"):
        at = data.find(mark, start)
        if at >= 0:
            ends.append(at + len(mark))
    return min(ends, default=-1)


def _length(headers: Mapping[str, str]) -> tuple[bool, int | None]:
    """Whether the body comes in chunks, and otherwise its length (RFC 9112, section 6)."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise HttpError(400)
        return True, None
    if length is None:
        return False, 0
    if _LENGTH.fullmatch(length) is None:
        raise HttpError(400)
    if int(length) > LONGEST_BODY:
        raise HttpError(413)
    return False, int(length)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def response(
    status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), *, keeps: bool = False, head: bool = False
) -> bytes:
    """Make an answer. `head`: it is the answer to a HEAD, which has no body."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if keeps else 'close'}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if head else body)

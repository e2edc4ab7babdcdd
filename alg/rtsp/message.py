"""The head of an RTSP message: what decides is read, with its place; all else is not looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alg.text.header import Span

_REQUEST = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]+(.*?)[ \t]+RTSP/[0-9]\.[0-9][ \t]*\r?\n", re.IGNORECASE)
_RESPONSE = re.compile(rb"RTSP/[0-9]\.[0-9][ \t]+([0-9]{3})", re.IGNORECASE)
_HEADER = re.compile(rb"(?i)^(transport|cseq|session)[ \t]*+:[ \t]*+([^\r\n]*+(?:\r?\n[ \t][^\r\n]*+)*+)", re.MULTILINE)
_SECRET = re.compile(rb"(?im)^(?:proxy-)?authorization[ \t]*:[ \t]*([^\r\n]*)|rtspu?s?://([^/@\s]*)@")


@dataclass(frozen=True, slots=True)
class Head:
    """A request (`method` and `uri`) or a response (`status`).

    `transports`: spans of the values of its Transport headers. `cseq`, `session`: b"" where they are missing; of a
    session only the identifier.
    """

    method: bytes
    uri: bytes
    status: int
    cseq: bytes
    session: bytes
    transports: tuple[Span, ...]

    @property
    def succeeds(self) -> bool:
        """Whether it is a response that says so."""
        return 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether it is a response after which no other one comes."""
        return self.status >= 200


def read_head(data: bytes) -> Head:
    """Read a head that `alg.rtsp.stream.Framer` has cut."""
    method, uri, status = b"", b"", 0
    if found := _RESPONSE.match(data):
        status = int(found[1])
    elif found := _REQUEST.match(data):
        method, uri = found[1].upper(), found[2]
    cseq = session = b""
    transports: list[Span] = []
    for header in _HEADER.finditer(data, data.find(b"\n") + 1):
        name = header[1].lower()
        if name == b"transport":
            transports.append(header.span(2))
        elif name == b"cseq":
            cseq = header[2].strip()
        else:
            session = header[2].partition(b";")[0].strip()
    return Head(method, uri, status, cseq, session, tuple(transports))


def conceal(data: bytes) -> bytes:
    """The same bytes without passwords: credentials are shown as asterisks."""
    hidden = bytearray(data)
    for match in _SECRET.finditer(data):
        start, end = match.span(1) if match[1] is not None else match.span(2)
        hidden[start:end] = b"*" * (end - start)
    return bytes(hidden)

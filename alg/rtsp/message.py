"""The head of an RTSP message: what decides is read, with its place; all else is not looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alg.address import Endpoint
from alg.text.header import Span

DEFAULT_PORT = 554

_REQUEST = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]++(.*)(?<=[ \t])RTSP/[0-9]\.[0-9][ \t]*+\r?\n", re.IGNORECASE
)
_RESPONSE = re.compile(rb"RTSP/[0-9]\.[0-9][ \t]+([0-9]{3})", re.IGNORECASE)
_HEADER = re.compile(rb"(?i)^(transport|cseq|session)[ \t]*+:[ \t]*+([^\r\n]*+(?:\r?\n[ \t][^\r\n]*+)*+)", re.MULTILINE)
_PLACES = re.compile(rb"(?im)^(?:content-base|content-location|location|rtp-info)[ \t]*+:([^\r\n]*+)")
_CONTENT_LENGTH = re.compile(rb"(?im)^content-length[ \t]*+:[ \t]*+([0-9]+)")
_CONTENT_TYPE = re.compile(rb"(?im)^content-type[ \t]*+:[ \t]*+application/sdp")
_URL = re.compile(rb"(?i)rtspu?://([^/?#;,\s\"<>@]*)")
_SDP_ADDRESS = re.compile(rb"(?m)^(?:o=[^\r\n]*|c=)IN IP[46] ([^ /\r\n]+)")
_SDP_CONTROL = re.compile(rb"(?m)^a=control:([^\r\n]*)")
_SECRET = re.compile(rb"(?im)^(?:proxy-)?authorization[ \t]*:[ \t]*([^\r\n]*)|rtspu?s?://([^/@\s]*)@")


@dataclass(frozen=True, slots=True)
class RtspHead:
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
        """Whether this is a final response: no other response to the same request comes after it."""
        return self.status >= 200


def read_head(data: bytes) -> RtspHead:
    """Read a head that `alg.rtsp.stream.Framer` has cut."""
    method, uri, status = b"", b"", 0
    if found := _RESPONSE.match(data):
        status = int(found[1])
    elif found := _REQUEST.match(data):
        method, uri = found[1].upper(), found[2].rstrip(b" \t")
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
    return RtspHead(method, uri, status, cseq, session, tuple(transports))


def is_description(head: bytes) -> bool:
    """Whether a head says that an SDP description follows."""
    return _CONTENT_TYPE.search(head) is not None


def places_of(head: bytes, server: Endpoint) -> list[Span]:
    """Return the places at which a server names itself, by this endpoint, in those headers of a response that have
    URLs."""
    return [span for found in _PLACES.finditer(head) for span in _own_urls(head, found.span(1), server)]


def places_in_description(body: bytes, server: Endpoint) -> tuple[list[Span], list[Span]]:
    """Return the places at which a server names itself in a session description: its endpoint in URLs, and its address
    alone."""
    urls = [span for found in _SDP_CONTROL.finditer(body) for span in _own_urls(body, found.span(1), server)]
    alone = [found.span(1) for found in _SDP_ADDRESS.finditer(body) if found[1].decode("latin-1") == server.host]
    return urls, alone


def content_length(head: bytes) -> Span | None:
    """Return the place of the value of Content-Length."""
    found = _CONTENT_LENGTH.search(head)
    return found.span(1) if found else None


def _own_urls(data: bytes, span: Span, server: Endpoint) -> list[Span]:
    host = f"[{server.host}]" if server.version == 6 else server.host
    own = {f"{host}:{server.port}".encode(), *([host.encode()] if server.port == DEFAULT_PORT else [])}
    return [found.span(1) for found in _URL.finditer(data, *span) if found[1].lower() in own]


def conceal(data: bytes) -> bytes:
    """Return the same bytes with asterisks in place of credentials."""
    hidden = bytearray(data)
    for match in _SECRET.finditer(data):
        start, end = match.span(1) if match[1] is not None else match.span(2)
        hidden[start:end] = b"*" * (end - start)
    return bytes(hidden)

"""A session description (RFC 8866) as spans over its original bytes, and where it stands in a message's body."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from alg.sip.grammar import CONTENT_TYPE, HEADER
from alg.sip.message import Malformed, Message, Span

_LINE = re.compile(rb"\n(o=|c=|m=|a=(?:rtcp:|rtcp-mux|candidate:|ice-|sendrecv|sendonly|recvonly|inactive))([^\r\n]*+)")
_ORIGIN = re.compile(rb"\S+ [0-9]+ [0-9]+ IN IP[46] (\S+)[ \t]*")
_CONNECTION = re.compile(rb"IN IP[46] ([^\s/]+)((?:/[0-9]+)*)[ \t]*")
_MEDIA = re.compile(rb"([A-Za-z0-9.+_-]+) ([0-9]{1,5})(/[0-9]+)? (\S+)( .*)?", re.DOTALL)
_RTCP = re.compile(rb"([0-9]{1,5})(?: IN IP[46] (\S+))?[ \t]*")
_BODIES = (b"INVITE", b"UPDATE", b"PRACK", b"ACK")  # what may carry an offer or an answer (RFC 3261, 3262, 3311)
_MOST_MEDIA = 16
NOWHERE = ("0.0.0.0", "::")  # as an address: on hold in the old way (RFC 3264, 8.4)


class Place(NamedTuple):
    """An address (or a name) that stands in `data[start:end]`."""

    host: str
    start: int
    end: int


@dataclass(slots=True)
class Media:
    """An m= line. `port` 0: refused or not in use. `connection`: its own c= or the session's.

    `rtcp_port`: as a=rtcp says, None without. `pair`: RTP with RTCP beside it.
    """

    kind: str
    port: int
    port_span: Span
    many: bool
    protocol: bytes
    connection: Place | None
    rtcp_port: int | None = None
    rtcp_span: Span = (0, 0)
    rtcp_place: Place | None = None
    direction: str = "sendrecv"

    @property
    def pair(self) -> bool:
        return b"RTP/" in self.protocol

    @property
    def datagrams(self) -> bool:
        """Whether it goes over UDP in a way that one port, or a pair, is enough for."""
        return not self.many and (
            self.protocol.lower() == b"udptl" or self.protocol.startswith((b"RTP/", b"UDP/TLS/RTP"))
        )


@dataclass(slots=True)
class Description:
    """What a session description says that matters here. `ice`: it has candidates or other marks of ICE (RFC 8839)."""

    origin: Place | None = None
    connections: list[Place] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    ice: bool = False


def find_sdp(message: Message) -> Span | None:
    """The span of the session description in a message that may have one (and is no MESSAGE or NOTIFY).

    Of a multipart body (RFC 5621) its only part of that type. Malformed where there are several, or a part that cannot
    be told from the others.
    """
    kinds = message.headers.get("content-type")
    if message.method not in _BODIES or not kinds or message.body >= message.end:
        return None
    match = CONTENT_TYPE.fullmatch(message.data, *kinds[0])
    if match is None:
        raise Malformed("Content-Type")
    if "content-encoding" in message.headers:
        return None
    kind = match[1].lower()
    if kind == b"application" and match[2].lower() == b"sdp":
        return message.body, message.end
    if kind != b"multipart":
        return None
    boundary = message.param(match.span(3), b"boundary")
    if boundary is None or not boundary[0].strip(b'"'):
        raise Malformed("multipart without a boundary")
    found = [span for span in _parts(message, boundary[0].strip(b'"')) if span]
    if len(found) > 1:
        raise Malformed("several session descriptions")
    return found[0] if found else None


def _parts(message: Message, boundary: bytes) -> list[Span | None]:
    """The spans of the parts' bodies that are session descriptions; None for others."""
    data, end = message.data, message.end
    mark = b"--" + boundary
    if not data.startswith(mark, message.body):
        raise Malformed("a multipart body with a preamble")
    parts: list[Span | None] = []
    at = message.body + len(mark)
    while not data.startswith(b"--", at):
        close = data.find(b"\r\n" + mark, at, end)
        if not data.startswith(b"\r\n", at) or close < 0:
            raise Malformed("a part of a multipart body")
        parts.append(_part(data, at + 2, close))
        at = close + 2 + len(mark)
    return parts


def _part(data: bytes, start: int, end: int) -> Span | None:
    is_sdp = False
    while match := HEADER.match(data, start, end):
        name = match[1].lower()
        if name == b"content-type":
            is_sdp = match[2].lower().split(b";")[0].strip() == b"application/sdp"
        elif name in (b"content-length", b"content-transfer-encoding") and not match[2].lower().startswith(
            (b"b", b"8", b"7")
        ):
            return None  # would have to follow an edit, or hides what is there
        start = match.end()
    return (start + 2, end) if is_sdp and data.startswith(b"\r\n", start) else None


def is_held(media: Iterable[Media]) -> bool:
    """Whether all streams that are in use are on hold (RFC 3264, 8.4): silence in them means nothing."""
    used = [line for line in media if line.port]
    return bool(used) and all(
        line.direction != "sendrecv" or (line.connection is not None and line.connection.host in NOWHERE)
        for line in used
    )


def read_sdp(data: bytes, start: int, end: int) -> Description:
    """Read the description in `data[start:end]`. Malformed for one that is not by the grammar."""
    if not data.startswith(b"v=0", start):
        raise Malformed("a session description without v=0")
    found = Description()
    session: Place | None = None
    direction = "sendrecv"
    media: Media | None = None
    for match in _LINE.finditer(data, start, end):
        key, span = match[1], match.span(2)
        if key == b"m=":
            media = _media(data, span, session, direction)
            found.media.append(media)
            if len(found.media) > _MOST_MEDIA:
                raise Malformed("too many m= lines")
        elif key == b"c=":
            place = _place(_CONNECTION, data, span)
            found.connections.append(place)
            if media is None:
                session = place
            else:
                media.connection = place
        elif key == b"o=":
            found.origin = _place(_ORIGIN, data, span)
        elif key == b"a=rtcp:":
            if media is not None:
                _rtcp(media, data, span)
        elif key in (b"a=candidate:", b"a=ice-"):
            found.ice = True
        elif key != b"a=rtcp-mux":
            if media is None:
                direction = key[2:].decode()
            else:
                media.direction = key[2:].decode()
    return found


def _place(pattern: re.Pattern[bytes], data: bytes, span: Span) -> Place:
    match = pattern.fullmatch(data, *span)
    if match is None:
        raise Malformed("o= or c=")
    return Place(match[1].decode("latin-1"), *match.span(1))


def _media(data: bytes, span: Span, connection: Place | None, direction: str) -> Media:
    match = _MEDIA.fullmatch(data, *span)
    if match is None or int(match[2]) > 65535:
        raise Malformed("m=")
    return Media(
        match[1].decode(), int(match[2]), match.span(2), match[3] is not None, match[4], connection, direction=direction
    )


def _rtcp(media: Media, data: bytes, span: Span) -> None:
    match = _RTCP.fullmatch(data, *span)
    if match is None or not 0 < int(match[1]) < 65536 or media.rtcp_port is not None:
        raise Malformed("a=rtcp")
    media.rtcp_port, media.rtcp_span = int(match[1]), match.span(1)
    if match[2] is not None:
        media.rtcp_place = Place(match[2].decode("latin-1"), *match.span(2))

"""Reads a session description (RFC 8866) as spans over its original bytes. SIP and RTSP carry them.

Addresses and ports of c= and m= lines are read strictly. An o= or a=rtcp line that cannot be read is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from alg.text.header import Malformed, Span

_LINE = re.compile(rb"\n(o=|c=|m=|a=(?:rtcp:|rtcp-mux|candidate:|ice-|sendrecv|sendonly|recvonly|inactive))([^\r\n]*+)")
_NET = rb"(?i:IN)[ \t]+(?i:IP[46])[ \t]+"
_ORIGIN = re.compile(rb"[^\r\n]*[ \t]" + _NET + rb"(\S+)[ \t]*")
_CONNECTION = re.compile(rb"[ \t]*" + _NET + rb"([^\s/]+)(?:/[0-9]+)*[ \t]*")
_MEDIA = re.compile(rb"[ \t]*(\S+)[ \t]+([0-9]{1,5})(?:/([0-9]{1,5}))?[ \t]+(\S+)(?:[ \t].*)?", re.DOTALL)
_RTCP = re.compile(rb"[ \t]*([0-9]{1,5})(?:[ \t]+" + _NET + rb"(\S+))?[ \t]*")
_BEGINNING = re.compile(rb"(?:(?:v=)?\r?\n)*v=0")  # some have an empty line before it, or "v=" alone
_REFUSED = re.compile(rb"[ \t]*(\S+)[ \t]+(0)(?:[ \t].*)?", re.DOTALL)
_MOST_MEDIA = 16  # streams in use
_MOST_LINES = 256
_CONNECTIONS = (b"tcp", b"tls", b"sctp", b"dccp")  # in place of datagrams; whatever else a maker writes goes over UDP
_PAIR = 2  # as the number of ports in m=: devices say so of RTP and its RTCP
ON_HOLD = ("0.0.0.0", "::")  # as an address: on hold in the old way (RFC 3264, 8.4)


class Place(NamedTuple):
    """An address (or a name), as it stands in `data[start:end]`."""

    host: str
    start: int
    end: int


@dataclass(slots=True)
class Media:
    """An m= line. `port` 0: the stream is refused or not in use. `many`: the line stands for several sessions at ports
    of their own. `connection`: its own c= line or the session's.

    `rtcp_port`: the port of a=rtcp; None without one. `pair`: RTP with RTCP beside it.
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
        return b"rtp/" in self.protocol.lower() + b"/"

    @property
    def datagrams(self) -> bool:
        """Whether the stream goes over UDP in a way for which one port, or a pair, is enough."""
        return not self.many and self.protocol.lower().split(b"/")[0] not in _CONNECTIONS


@dataclass(slots=True)
class Description:
    """The parts of a session description that matter here. `ice`: it has candidates or other marks of ICE (RFC
    8839)."""

    origin: Place | None = None
    connections: list[Place] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    ice: bool = False


def is_held(media: Iterable[Media]) -> bool:
    """Whether all streams in use are on hold (RFC 3264, 8.4), so that silence in them is normal."""
    used = [line for line in media if line.port]
    return bool(used) and all(
        line.direction != "sendrecv" or (line.connection is not None and line.connection.host in ON_HOLD)
        for line in used
    )


def read_sdp(data: bytes, start: int, end: int) -> Description:
    """Read the description in `data[start:end]`. Raises Malformed where a c= or m= line of a stream in use cannot be
    read."""
    if _BEGINNING.match(data, start, end) is None:
        raise Malformed("a session description without v=0", start)
    found = Description()
    session: Place | None = None
    direction = "sendrecv"
    media: Media | None = None
    used = 0
    for match in _LINE.finditer(data, start, end):
        key, span = match[1], match.span(2)
        if key == b"m=":
            media = _media(data, span, session, direction)
            found.media.append(media)
            used += media.port != 0
            if used > _MOST_MEDIA or len(found.media) > _MOST_LINES:
                raise Malformed("too many m= lines", span[0])
        elif key == b"c=":
            place = _place(_CONNECTION, data, span)
            if place is None:
                if media is not None and not media.port:
                    continue  # of a stream that is not in use
                raise Malformed("c=", span[0])
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


def _place(pattern: re.Pattern[bytes], data: bytes, span: Span) -> Place | None:
    match = pattern.fullmatch(data, *span)
    return Place(match[1].decode("latin-1"), *match.span(1)) if match else None


def _media(data: bytes, span: Span, connection: Place | None, direction: str) -> Media:
    match = _MEDIA.fullmatch(data, *span)
    if match is None and (refused := _REFUSED.fullmatch(data, *span)):
        return Media(refused[1].decode("latin-1"), 0, refused.span(2), False, b"", connection, direction=direction)
    if match is None or int(match[2]) > 65535:
        raise Malformed("m=", span[0])
    many = match[3] is not None and int(match[3]) > _PAIR
    return Media(
        match[1].decode("latin-1"), int(match[2]), match.span(2), many, match[4], connection, direction=direction
    )


def _rtcp(media: Media, data: bytes, span: Span) -> None:
    match = _RTCP.fullmatch(data, *span)
    if match is None or not 0 < int(match[1]) < 65536:
        return
    if media.rtcp_port is not None:  # said twice: which one counts cannot be told
        media.rtcp_port, media.rtcp_place = None, None
        return
    media.rtcp_port, media.rtcp_span = int(match[1]), match.span(1)
    if match[2] is not None:
        media.rtcp_place = Place(match[2].decode("latin-1"), *match.span(2))

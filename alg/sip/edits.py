"""Turns addresses in a message into edits, and back. Nothing else in the module makes edits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache

from alg.address import Endpoint, canonical
from alg.api import Edit
from alg.sip.message import HostPort, Message, uri_host
from alg.sip.sockets import InsideSocket, InsideSockets
from alg.text.header import Span, find_param
from alg.text.sdp import Description

DEFAULT_PORT = 5060
NOWHERE = ("0.0.0.0", "::")  # what a client writes if its SOCKS library does not tell it its address
# The parameters of a URI, behind its host and port. There is no `>` in them but in quotes, which `maddr` has not.
_URI_PARAMS = re.compile(rb'[^<>,"\r\n]*+')
_NEAR = 256  # bytes behind an address in which `maddr` is looked for
_OWN_HEADERS = ("contact", "record-route", "path")
_ECHOED_HEADERS = ("route", *_OWN_HEADERS)


class Edits:
    """The edits of one message, collected in any order."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._found: dict[Span, Edit] = {}

    def replace(self, start: int, end: int, new: bytes, reason: str) -> None:
        """Replace `data[start:end]`; nothing happens if the text is the same."""
        if self._message.data[start:end] != new:
            self._found[start, end] = Edit(start, end, new, reason)

    def done(self) -> tuple[Edit, ...]:
        """Return all edits in order, with Content-Length adapted to the body (RFC 3261, 20.14)."""
        if not self._found:
            return ()
        message = self._message
        grown = 0
        for (start, end), edit in self._found.items():
            if start >= message.body:
                grown += len(edit.replacement) - (end - start)
        spans = message.headers.get("content-length")
        if grown and spans:
            start, end = spans[0]
            end = start + len(message.data[start:end].rstrip())
            self.replace(start, end, b"%d" % (message.end - message.body + grown), "sip.content-length")
        if grown and message.part_length is not None:
            start, end = message.part_length
            self.replace(start, end, b"%d" % (int(message.data[start:end]) + grown), "sip.content-length")
        return tuple([self._found[span] for span in sorted(self._found)])


def same_host(text: str, host: str) -> bool:
    """Whether `text` of a message is the address `host` (canonical)."""
    if text == host:
        return True
    if ":" not in text:
        return False
    try:
        return str(canonical(text)) == host
    except ValueError:
        return False


@lru_cache(8192)
def is_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `text` is; None for a name, or for an address that has a meaning only on its own host."""
    if not (text[:1].isdigit() or ":" in text) or "%" in text:
        return None
    try:
        return canonical(text)
    except ValueError:
        return None


def endpoint_of(place: HostPort) -> Endpoint | None:
    """Return the endpoint of a host and port, with SIP's default port; None for a name."""
    return _endpoint(place.host, place.port or DEFAULT_PORT)


@lru_cache(8192)
def _endpoint(host: str, port: int) -> Endpoint | None:
    address = is_address(host)
    return Endpoint(str(address), port) if address else None


def own_places(message: Message, host: str, fixed: bool = False) -> list[tuple[str, HostPort]]:
    """Return where an outbound message names `host`, its own client, in signalling: ("via", place), ("contact", place),
    ...

    `fixed`: the message goes through a connection or association of the client, so the unspecified address (NOWHERE) is
    the client's too.
    """
    found = []
    if message.is_request:
        sent_by = message.via().sent_by
        if same_host(sent_by.host, host) or (fixed and sent_by.host in NOWHERE):
            found.append(("via", sent_by))
    for name in _OWN_HEADERS:
        if name not in message.headers:
            continue
        for addr in message.readable(name):
            place = uri_host(message.data, addr.uri)
            if place and (same_host(place.host, host) or (fixed and place.host in NOWHERE)):
                found.append((name, place))
    return found


def is_over_udp(message: Message, place: HostPort) -> bool:
    """Whether the contact at `place` is to be reached over UDP (RFC 3263, 4.1: it does not say TCP)."""
    return any(
        addr.uri[0] + uri.place.start == place.start and b"transport=tcp" not in uri.params
        for addr, uri in message.own_contacts()
    )


def advertise(
    edits: Edits, message: Message, client: Endpoint, name: str, place: HostPort, inside: InsideSocket
) -> None:
    """Write the public endpoint into `place`, and remember how the client had written it, and from which socket."""
    if not inside.written:
        return
    inside.named_by(client)
    inside.spelled["via" if name == "via" else "uri"] = message.data[place.start : place.end]
    edits.replace(place.start, place.end, inside.written, f"sip.{name}")
    found = _maddr(message, name, place)
    if found and inside.public is not None and same_host(_host(found[0]), client.host):
        edits.replace(*found[1], _bracketed(inside.public.host), "sip.maddr")


def _maddr(message: Message, name: str, place: HostPort) -> tuple[bytes, Span] | None:
    """Return the parameter `maddr` behind a place, which says where to send to in its stead."""
    if b"maddr" not in message.data[place.end : place.end + _NEAR].lower():
        return None  # as in nearly all messages
    if name == "via":
        return find_param(message.data, message.via().params, b"maddr")
    match = _URI_PARAMS.match(message.data, place.end)
    return find_param(message.data, match.span(), b"maddr") if match is not None else None


def _host(text: bytes) -> str:
    return text.decode("latin-1").strip("[]")


def _bracketed(host: str) -> bytes:
    return (f"[{host}]" if ":" in host else host).encode()


def restore(edits: Edits, message: Message, client: Endpoint, sockets: InsideSockets) -> None:
    """Restore the words of the socket `client` wherever an inbound message names a public endpoint that stands for that
    socket, or that it has named itself. What another phone at the same address has named is left for that phone."""

    def back(place: HostPort | None, kind: str, reason: str) -> InsideSocket | None:
        endpoint = endpoint_of(place) if place else None
        found = sockets.behind(endpoint) if endpoint else None
        if found is None or place is None or not found[0].is_of(client):
            return None
        inside = found[0]
        if inside.written:
            words = inside.spelled.get(kind) or str(inside.target).encode()
            edits.replace(place.start, place.end, words, reason)
            maddr = _maddr(message, kind, place)
            if maddr and inside.public is not None and same_host(_host(maddr[0]), inside.public.host):
                edits.replace(*maddr[1], _bracketed(inside.target.host), "sip.maddr")
        return inside

    if message.is_request:
        back(uri_host(message.data, message.uri), "uri", "sip.request-uri")
    else:
        _restore_via(edits, message, client, back)
    for name in _ECHOED_HEADERS:
        if name not in message.headers:
            continue
        for addr in message.readable(name):
            back(uri_host(message.data, addr.uri), "uri", f"sip.{name}")


def _restore_via(
    edits: Edits,
    message: Message,
    client: Endpoint,
    back: Callable[[HostPort | None, str, str], InsideSocket | None],
) -> None:
    via = message.via()
    inside = back(via.sent_by, "via", "sip.via")
    if inside is None or inside.public is None:
        return
    public = inside.public
    received = message.param(via.params, b"received")
    if received and same_host(received[0].decode("latin-1").strip("[]"), public.host):
        edits.replace(*received[1], client.host.encode(), "sip.received")
    rport = message.param(via.params, b"rport")
    if rport and rport[0] == b"%d" % public.port:
        edits.replace(*rport[1], b"%d" % client.port, "sip.rport")


def describe(
    edits: Edits, message: Message, sdp: Description, host: str, public: str, media: dict[int, InsideSocket]
) -> None:
    """Write public endpoints into the client's own session description. `media`: the socket of each m= line that is
    served. The c= line of others alone stays as it is."""
    if public == host:
        return
    served = [sdp.media[index].connection for index in media]
    others = {
        line.connection
        for index, line in enumerate(sdp.media)
        if line.port and index not in media and line.connection not in served
    }
    for place in (*sdp.connections, *([sdp.origin] if sdp.origin else ())):
        if same_host(place.host, host) and place not in others:
            reason = "sdp.origin" if place is sdp.origin else "sdp.connection"
            edits.replace(place.start, place.end, public.encode(), reason)
    for index, inside in media.items():
        line = sdp.media[index]
        assert inside.public is not None
        # The stream may be at the port that was opened beside another one's.
        port = inside.public.port + (line.port != inside.target.port and line.port == inside.second)
        edits.replace(*line.port_span, b"%d" % port, "sdp.port")
        if line.rtcp_port is not None:
            if line.rtcp_port == line.port:
                edits.replace(*line.rtcp_span, b"%d" % port, "sdp.rtcp")
            elif line.port == inside.target.port and line.rtcp_port == inside.second:
                edits.replace(*line.rtcp_span, b"%d" % (port + 1), "sdp.rtcp")
            else:
                continue  # it was not opened, and another host's port must not be advertised in its place
            if line.rtcp_place and same_host(line.rtcp_place.host, host):
                edits.replace(line.rtcp_place.start, line.rtcp_place.end, public.encode(), "sdp.rtcp")


def hairpin(edits: Edits, message: Message, sdp: Description, sockets: InsideSockets) -> bool:
    """If the far side's description names sockets of inside clients, write these: their media need no router.

    Only if every stream in use does so, behind one address. Returns whether it did.
    """
    behind: dict[int, Endpoint] = {}
    for index, line in enumerate(sdp.media):
        address = is_address(line.connection.host) if line.connection else None
        if not line.port:
            continue
        found = sockets.media_behind(Endpoint(str(address), line.port)) if address else None
        if found is None:
            return False
        behind[index] = found[1]
    hosts = {endpoint.host for endpoint in behind.values()}
    if len(hosts) != 1:
        return False
    host = hosts.pop().encode()
    for place in sdp.connections:
        edits.replace(place.start, place.end, host, "sdp.hairpin")
    for index, endpoint in behind.items():
        line = sdp.media[index]
        edits.replace(*line.port_span, b"%d" % endpoint.port, "sdp.hairpin")
        if line.rtcp_port is not None and line.connection:
            found = sockets.media_behind(Endpoint(line.connection.host, line.rtcp_port))
            if found:
                edits.replace(*line.rtcp_span, b"%d" % found[1].port, "sdp.hairpin")
            if line.rtcp_place:
                edits.replace(line.rtcp_place.start, line.rtcp_place.end, host, "sdp.hairpin")
    return True

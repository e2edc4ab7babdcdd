"""Announces: how a BitTorrent client tells a tracker at which port it listens, over HTTP (BEP 3, 7, 23) and UDP (BEP
15, 41). Places are offsets in the bytes that were read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from alg.text.header import Span

LONGEST_HEAD = 16384  # bytes of a request's head
LEAST_ANNOUNCE = 98  # bytes of an announce over UDP (BEP 15); what follows are options (BEP 41)
UDP_ADDRESS: Span = (84, 88)
UDP_PORT: Span = (96, 98)
_LOWEST_PORT = 1024

# How the first line of a request may go on; the request itself has no body.
_BEGINS = re.compile(rb"(?:GET|HEAD) [^\s]+ HTTP/1\.[01]\r?\n")
_MAY_BEGIN = re.compile(rb"(?:G|GE|GET|H|HE|HEA|HEAD|(?:GET|HEAD) [^\s]*|(?:GET|HEAD) [^\s]+ [A-Z/0-9.]{0,8}\r?)")
# Headers that browsers add by themselves, and torrent clients do not.
_BROWSERS = re.compile(
    rb"\n(?:accept-language|referer|origin|cookie|upgrade-insecure-requests|dnt|sec-[a-z0-9-]+)[ \t]*:", re.IGNORECASE
)
_BODY = re.compile(rb"\n(?:content-length|transfer-encoding|upgrade)[ \t]*:", re.IGNORECASE)
_PORT = re.compile(rb"[1-9][0-9]{3,4}")
_HASHES = (20, 32)  # bytes of an info hash (BEP 3, BEP 52; clients cut the longer one to 20)
_SECRET = re.compile(rb"[?&](?:info_hash|peer_id|key|passkey|trackerid)=([^&\s]+)|/([0-9A-Za-z_-]{16,})(?=[/?])")


@dataclass(frozen=True, slots=True)
class Announce:
    """A message by which a client says that it listens at `port` for the torrent `info_hash`, or no longer does
    (`stopped`). `port_at`: the place of the port in the message. `address`: the IPv4 address that the client gives as
    its own, at the place `address_at`; "" if it gives none."""

    info_hash: bytes
    port: int
    stopped: bool
    port_at: Span
    address: str = ""
    address_at: Span = (0, 0)

    @property
    def opens(self) -> bool:
        """Whether the port is one that may be opened; 0 and 1 say that the client does not listen."""
        return _LOWEST_PORT <= self.port <= 65535


def begins_as_request(data: bytes) -> bool | None:
    """Return whether bytes begin as an HTTP request without a body; None: more bytes are needed to know."""
    if _BEGINS.match(data):
        return True
    return None if _MAY_BEGIN.fullmatch(data) else False


def is_of_browser(head: bytes) -> bool:
    """Whether a head has a header that browsers add to whatever a page makes them fetch."""
    return _BROWSERS.search(head) is not None


def has_body(head: bytes) -> bool:
    """Whether something follows the head that is not a request."""
    return _BODY.search(head) is not None


def read_http(head: bytes) -> Announce | None:
    """Read an announce in the head of an HTTP request. Returns None for any other request, and for one that can be read
    in two ways."""
    line = head[: head.find(b"\n")]
    found: dict[bytes, tuple[bytes, Span]] = {}
    for name, at, end in _parameters(line):
        if name in found:
            if name in (b"info_hash", b"port", b"event", b"ip", b"ipv4"):
                return None
            continue
        found[name] = line[at:end], (at, end)
    info_hash = unquote_to_bytes(found[b"info_hash"][0]) if b"info_hash" in found else b""
    if len(info_hash) not in _HASHES or b"peer_id" not in found or b"port" not in found:
        return None
    port, port_at = found[b"port"]
    if not _PORT.fullmatch(port):
        return None
    address, address_at = found.get(b"ip") or found.get(b"ipv4") or (b"", (0, 0))
    stopped = found.get(b"event", (b"", (0, 0)))[0] == b"stopped"
    return Announce(info_hash[:20], int(port), stopped, port_at, address.decode("latin-1"), address_at)


def _parameters(line: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Return the names of a request's parameters, and where their values begin and end. In time linear in the bytes."""
    at = line.find(b"?") + 1
    last = line.find(b" ", at)
    while 0 < at <= last:
        end = line.find(b"&", at, last)
        end = last if end < 0 else end
        equals = line.find(b"=", at, end)
        if equals >= 0:
            yield line[at:equals], equals + 1, end
        at = end + 1


def read_udp(data: bytes) -> Announce | None:
    """Read an announce that is a whole datagram; None for any other. Its connection id is not looked at."""
    if len(data) < LEAST_ANNOUNCE or data[8:12] != b"\0\0\0\1":
        return None
    said = data[slice(*UDP_ADDRESS)]
    address = ".".join(map(str, said)) if any(said) else ""
    port = int.from_bytes(data[slice(*UDP_PORT)])
    return Announce(data[16:36], port, data[80:84] == b"\0\0\0\3", UDP_PORT, address, UDP_ADDRESS)


def conceal(data: bytes) -> bytes:
    """Return the same bytes with asterisks for what identifies a user or a torrent: passkeys, peer ids and hashes."""
    hidden = bytearray(data)
    for match in _SECRET.finditer(data):
        start, end = match.span(1) if match[1] is not None else match.span(2)
        hidden[start:end] = b"*" * (end - start)
    return bytes(hidden)

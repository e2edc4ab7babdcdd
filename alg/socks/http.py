"""HTTP CONNECT as a proxy reads it (RFC 9110 section 9.3.6, RFC 9112, RFC 7617), without a socket.

`parse_request` works as the parsers of `socks5` do. A head is at most MAX_HEAD bytes long, and has at most MAX_FIELDS
fields.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from typing import NamedTuple

from alg.socks.password import Credentials
from alg.socks.socks5 import SocksError, decode_name

MAX_HEAD = 16384
MAX_FIELDS = 100
"""A head of nothing but fields of three bytes would have 5,000, each of which costs more than all its bytes. Clients
send ten."""

_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,2048}) HTTP/1\.([0-9])")
# One way to read each byte: a client that may not yet do anything would choose those that are read in many.
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_AUTHORITY = re.compile(rb"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})")

# What is said with a status; a client gets no more than that.
_REASONS = {
    200: "Connection established",
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}


class Request(NamedTuple):
    """A CONNECT. `host` is what the client named, in its spelling, without brackets. `credentials` are those of
    Proxy-Authorization: Basic, None without."""

    host: str
    port: int
    credentials: Credentials | None


def parse_request(buffer: bytes | bytearray) -> tuple[Request, int] | None:
    """Read the head of a request; None: more bytes are needed.

    Raises SocksError with the status to answer with: 400 for a head that cannot be read or is too long, 405 for another
    method. What is behind the head belongs to the server, so a body cannot be announced.
    """
    start = 2 if buffer[:2] == b"\r\n" else 0  # an empty line before it is allowed (RFC 9112 section 2.2)
    end = buffer.find(b"\r\n\r\n", start, MAX_HEAD)
    if end < 0:
        if len(buffer) >= MAX_HEAD:
            raise SocksError(400, f"the head of the request is longer than {MAX_HEAD} bytes")
        return None
    first, *lines = bytes(buffer[start:end]).split(b"\r\n")
    found = _REQUEST.fullmatch(first)
    if found is None:
        raise SocksError(400, "it is not a request of HTTP/1")
    if len(lines) > MAX_FIELDS:
        raise SocksError(400, f"the head of the request has more than {MAX_FIELDS} fields")
    if found[1] != b"CONNECT":
        raise SocksError(405, f"{found[1].decode()} is not CONNECT")
    authority = _AUTHORITY.fullmatch(found[2])
    if authority is None or not 1 <= int(authority[3]) <= 65535:
        raise SocksError(400, "the target is not HOST:PORT")
    credentials = None
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise SocksError(400, "a line of the head is not NAME: VALUE")
        name, value = field[1].lower(), field[2].strip(b" \t")
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            raise SocksError(400, "CONNECT has no body")
        if name == b"proxy-authorization":
            if credentials is not None:
                raise SocksError(400, "there are two Proxy-Authorization fields")
            credentials = _basic(value)
    host = decode_name(authority[1] or authority[2], 400)
    return Request(host, int(authority[3]), credentials), end + 4


class HeadReader:
    """`parse_request` for a buffer that grows: what has no end in it is not searched again, however it is cut."""

    __slots__ = ("_searched",)

    def __init__(self) -> None:
        self._searched = 0

    def __call__(self, buffer: bytes | bytearray) -> tuple[Request, int] | None:
        """Read the head at the beginning of `buffer`, which may have grown behind its end since the last call. Returns
        and raises what `parse_request` does."""
        since, self._searched = max(0, self._searched - 3), len(buffer)
        if len(buffer) < MAX_HEAD and buffer.find(b"\r\n\r\n", since) < 0:
            return None
        return parse_request(buffer)


def _basic(value: bytes) -> Credentials | None:
    """User and password of Basic (RFC 7617); None for another scheme. Raises SocksError."""
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = b64decode(token.strip(), validate=True).partition(b":")
    except binascii.Error:
        raise SocksError(400, "Proxy-Authorization is not base64") from None
    if not colon or len(user) > 255 or len(password) > 255:
        raise SocksError(400, "Proxy-Authorization is not USER:PASSWORD")
    return Credentials(user, password)


def encode_answer(status: int) -> bytes:
    """The head of an answer. After 200 the tunnel begins; after anything else the connection ends."""
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
    if status == 200:
        return head.encode() + b"\r\n"
    if status == 405:
        head += "Allow: CONNECT\r\n"
    if status == 407:
        head += 'Proxy-Authenticate: Basic realm="algate", charset="UTF-8"\r\n'
    return (head + "Content-Length: 0\r\nConnection: close\r\n\r\n").encode()

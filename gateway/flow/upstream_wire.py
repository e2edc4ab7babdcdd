"""The client's side of SOCKS 4a, SOCKS 5 (RFC 1928, RFC 1929) and HTTP CONNECT (RFC 9110 section 9.3.6). Pure.

Each protocol is a dialogue: a generator that yields what to send and the parser of the answer, receives what that
parser returned, and ends when the tunnel is open. A parser looks at what has come so far and returns None (more is
needed), or what it read and how many bytes that took. The bytes behind those belong to the tunnel.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Callable, Generator
from typing import Literal

Failure = Literal["denied", "refused", "network", "host", "timeout", "failed"]
Parser = Callable[[bytes | bytearray], tuple[int, int] | None]
Dialogue = Generator[tuple[bytes, Parser], int, None]
Kind = Literal["socks4a", "socks5", "http"]

MAX_HTTP_HEAD = 16384

_REPLIES5: dict[int, tuple[Failure, str]] = {
    1: ("failed", "general failure"),
    2: ("denied", "not allowed"),
    3: ("network", "network unreachable"),
    4: ("host", "host unreachable"),
    5: ("refused", "connection refused"),
    6: ("timeout", "TTL expired"),
    7: ("failed", "CONNECT is not supported"),
    8: ("failed", "address type is not supported"),
}
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})[ \r]")
_HTTP: dict[int, Failure] = {403: "denied", 502: "host", 503: "host", 504: "timeout"}


class UpstreamError(Exception):
    """The upstream does not do what was asked. `failure` is the reason in one word."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


def dialogue(kind: Kind, host: str, port: int, user: str = "", password: str = "") -> Dialogue:
    """Return the dialogue that asks an upstream for a tunnel to `host` (an address or a canonical name) and `port`."""
    if kind == "socks4a":
        return _socks4a(host, port, user)
    if kind == "socks5":
        return _socks5(host, port, user, password)
    return _http(host, port, user, password)


def _socks4a(host: str, port: int, user: str) -> Dialogue:
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        raise UpstreamError("network", "SOCKS 4a knows no IPv6 addresses")
    packed = address.packed if address else b"\0\0\0\1"
    name = b"" if address else host.encode() + b"\0"
    code = yield b"\4\1" + port.to_bytes(2, "big") + packed + user.encode() + b"\0" + name, _reply4
    if code != 90:
        raise UpstreamError("denied" if code in (92, 93) else "failed", f"SOCKS 4 reply {code}")


def _socks5(host: str, port: int, user: str, password: str) -> Dialogue:
    method = yield (b"\5\2\0\2" if user else b"\5\1\0"), _pair(5)
    if method == 2 and user:
        name, secret = user.encode(), password.encode()
        status = yield bytes([1, len(name)]) + name + bytes([len(secret)]) + secret, _pair(1)
        if status:
            raise UpstreamError("denied", "it does not accept user and password")
    elif method:
        raise UpstreamError("denied", "it accepts none of our methods of authentication")
    address = _address(host)
    if address is None:
        target = bytes([3, len(host)]) + host.encode()
    else:
        target = bytes([1 if address.version == 4 else 4]) + address.packed
    code = yield b"\5\1\0" + target + port.to_bytes(2, "big"), _reply5
    if code:
        failure, text = _REPLIES5.get(code, ("failed", f"reply {code}"))
        raise UpstreamError(failure, text)


def _http(host: str, port: int, user: str, password: str) -> Dialogue:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n"
    if user:
        head += f"Proxy-Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
    status = yield (head + "\r\n").encode(), _HttpStatus()
    if not 200 <= status < 300:
        raise UpstreamError("denied" if status in (401, 407) else _HTTP.get(status, "failed"), f"HTTP status {status}")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _pair(version: int) -> Parser:
    """Return a parser of two bytes, a version and a value."""

    def parse(buffer: bytes | bytearray) -> tuple[int, int] | None:
        if buffer and buffer[0] != version:
            raise UpstreamError("failed", f"its answer begins with {buffer[0]}, not with {version}")
        return (buffer[1], 2) if len(buffer) >= 2 else None

    return parse


def _reply4(buffer: bytes | bytearray) -> tuple[int, int] | None:
    if buffer and buffer[0]:
        raise UpstreamError("failed", f"its answer begins with {buffer[0]}, not with 0")
    return (buffer[1], 8) if len(buffer) >= 8 else None


def _reply5(buffer: bytes | bytearray) -> tuple[int, int] | None:
    if buffer and buffer[0] != 5:
        raise UpstreamError("failed", f"its answer begins with {buffer[0]}, not with 5")
    if len(buffer) < 5:
        return None
    match buffer[3]:
        case 1:
            length = 10
        case 4:
            length = 22
        case 3:
            length = 7 + buffer[4]
        case kind:
            raise UpstreamError("failed", f"its answer has the address type {kind}")
    return (buffer[1], length) if len(buffer) >= length else None


class _HttpStatus:
    """A parser of the status of an answer whose whole head has come, including interim answers (1xx) before it. What
    follows a success belongs to the tunnel (RFC 9110, 9.3.6). It is given everything that came, and looks at each byte
    once."""

    def __init__(self) -> None:
        self._start = 0  # of the answer, behind the interim ones
        self._seen = 0

    def __call__(self, buffer: bytes | bytearray) -> tuple[int, int] | None:
        while True:
            beginning = bytes(buffer[self._start : self._start + 7])
            if not b"HTTP/1.".startswith(beginning):
                raise UpstreamError("failed", "its answer is not HTTP")
            end = buffer.find(b"\r\n\r\n", max(self._start, self._seen - 3), MAX_HTTP_HEAD)
            if end < 0:
                self._seen = len(buffer)
                if len(buffer) > MAX_HTTP_HEAD:
                    raise UpstreamError("failed", "the head of its answer is too long")
                return None
            found = _STATUS.match(buffer, self._start)
            if not found:
                raise UpstreamError("failed", "its answer is not HTTP")
            self._start = self._seen = end + 4
            if not found[1].startswith(b"1"):  # else it is an interim answer, and the real one follows
                return int(found[1]), self._start

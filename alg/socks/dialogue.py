"""The client's side of SOCKS 4 and 4a, SOCKS 5 (RFC 1928, RFC 1929, RFC 1961) and HTTP CONNECT (RFC 9110 section
9.3.6). Pure.

Each protocol is a dialogue: a generator that yields what to send and the parser of the answer, receives what that
parser returned, and returns a `Granted` when the proxy has carried out the request. A parser looks at what has come so
far. It returns how many more bytes belong to the proxy for certain (a caller that reads no more than that never takes a
byte of the tunnel), or what it read and how many bytes that took.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple

from alg.address import Address
from alg.socks.errors import Failure, ProxyError
from alg.socks.gssapi import HEADER, Level, Mechanism, MessageType, encode_message
from alg.socks.gssapi import VERSION as GSSAPI_VERSION
from alg.socks.password import encode_credentials
from alg.socks.socks5 import AddressType, Command, Method, encode_address

Parser = Callable[[bytes | bytearray], "tuple[Any, int] | int"]
Dialogue = Generator[tuple[bytes, Parser], Any, "Granted"]
ProxyKind = Literal["socks4", "socks4a", "socks5", "http"]

MAX_HTTP_HEAD = 16384

_REPLIES5: dict[int, tuple[Failure, str]] = {
    1: ("failed", "general failure"),
    2: ("denied", "not allowed"),
    3: ("network", "network unreachable"),
    4: ("host", "host unreachable"),
    5: ("refused", "connection refused"),
    6: ("timeout", "TTL expired"),
    7: ("failed", "the command is not supported"),
    8: ("failed", "address type is not supported"),
}
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})[ \r]")
_HTTP: dict[int, Failure] = {401: "denied", 403: "denied", 407: "denied", 502: "host", 503: "host", 504: "timeout"}
_ENDING = (b"\r\n\r", b"\r\n", b"\r")  # what of the end of a head may be there: 1, 2 or 3 bytes are missing


class Account(NamedTuple):
    """The client's credentials. With a `mechanism` only GSSAPI is offered, with at least the protection `level`, so
    that an attacker on the way cannot make the two use less."""

    user: str = ""
    password: str = ""
    mechanism: Mechanism | None = None
    level: Level = Level.CONFIDENTIALITY

    def __repr__(self) -> str:
        return f"Account(user={self.user!r})"


NOBODY = Account()


class Granted(NamedTuple):
    """The result of a request. `host` and `port` are what the proxy told: its endpoint, the peer's, or what it looked
    up.

    `mechanism` and `level` protect what follows on the connection, if `level` is not NONE; `early` is what has come in
    clear text behind the answer, in the same message.
    """

    host: str
    port: int
    mechanism: Mechanism | None = None
    level: Level = Level.NONE
    early: bytes = b""


def ask(kind: ProxyKind, command: Command, host: str, port: int, account: Account = NOBODY) -> Dialogue:
    """Return the dialogue for a request. `host` is an address or a name. Raises ProxyError if the protocol has no such
    request, and for each refusal; ValueError for what does not fit into a message."""
    if kind == "http":
        return _http(command, host, port, account)
    if kind == "socks5":
        return _socks5(command, host, port, account)
    return _socks4(kind, command, host, port, account.user)


def second_reply(kind: ProxyKind, first: Granted) -> Dialogue:
    """Return the dialogue after the first reply to a BIND: it waits for the second one, which names the peer."""
    if kind == "socks5":
        return _request5(b"", first.mechanism, first.level, first.early)
    return _reply_of_4(b"")


def _socks4(kind: ProxyKind, command: Command, host: str, port: int, user: str) -> Dialogue:
    if command not in (Command.CONNECT, Command.BIND, Command.RESOLVE):
        raise ProxyError("failed", f"SOCKS 4 has no {command.name}")
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        raise ProxyError("network", "SOCKS 4 knows no IPv6 addresses")
    if address is None and kind == "socks4":
        raise ProxyError("host", "SOCKS 4 knows no names, 4a does")
    if "\0" in user + host:
        raise ValueError("a name has a NUL in it")
    packed = address.packed if address else b"\0\0\0\1"
    name = b"" if address else encode_address(host)[2:] + b"\0"
    return (
        yield from _reply_of_4(bytes((4, command)) + port.to_bytes(2, "big") + packed + user.encode() + b"\0" + name)
    )


def _reply_of_4(request: bytes) -> Dialogue:
    code, host, port = yield request, _reply4
    if code != 90:
        raise ProxyError("denied" if code in (92, 93) else "failed", f"SOCKS 4 reply {code}", code)
    return Granted(host, port)


def _socks5(command: Command, host: str, port: int, account: Account) -> Dialogue:
    request = bytes((5, command, 0)) + encode_address(host) + port.to_bytes(2, "big")
    offered = (Method.GSSAPI,) if account.mechanism else (Method.NONE, *((Method.PASSWORD,) if account.user else ()))
    method = yield bytes((5, len(offered), *offered)), _pair(5)
    if method not in offered:
        raise ProxyError("denied", "it accepts none of our methods of authentication", method)
    level = Level.NONE
    if method == Method.PASSWORD:
        status = yield encode_credentials(account.user.encode(), account.password.encode()), _pair(1)
        if status:
            raise ProxyError("denied", "it does not accept user and password", status)
    elif method == Method.GSSAPI:
        assert account.mechanism is not None
        level = yield from _gssapi(account.mechanism, account.level)
    return (yield from _request5(request, account.mechanism, level))


def _gssapi(mechanism: Mechanism, wanted: Level) -> Generator[tuple[bytes, Parser], Any, Level]:
    """Establish the context, and agree on a level of protection (RFC 1961 sections 3 and 4)."""
    try:
        token = mechanism.step(None)
        while True:
            answer = yield encode_message(MessageType.AUTHENTICATION, token), _message(MessageType.AUTHENTICATION)
            token = mechanism.step(answer) if answer or not mechanism.complete else b""
            if mechanism.complete and not token:
                break
        choice = mechanism.wrap(bytes((wanted,)), Level.INTEGRITY)
        kind = MessageType.PROTECTION_LEVEL
        answer = mechanism.unwrap((yield encode_message(kind, choice), _message(kind)), Level.INTEGRITY)
    except ValueError as error:
        raise ProxyError("denied", f"GSSAPI: {error}") from error
    if len(answer) != 1 or answer[0] not in (Level.NONE, Level.INTEGRITY, Level.CONFIDENTIALITY) or answer[0] < wanted:
        raise ProxyError("denied", f"it does not give the protection that was asked for ({wanted.name.lower()})")
    return Level(answer[0])


def _request5(request: bytes, mechanism: Mechanism | None, level: Level, early: bytes = b"") -> Dialogue:
    """Send a request (b"": none), wait for a reply."""
    if mechanism is None or level is Level.NONE:
        code, host, port = yield request, _reply5
        return Granted(*_granted5(code, host, port), mechanism, level)
    held = early
    kind = MessageType.ENCAPSULATION
    try:
        wire = encode_message(kind, mechanism.wrap(request, level)) if request else b""
        while isinstance(found := _reply5(held), int):
            held += mechanism.unwrap((yield wire, _message(kind)), level)
            wire = b""
    except ValueError as error:
        raise ProxyError("failed", f"GSSAPI: {error}") from error
    (code, host, port), used = found
    return Granted(*_granted5(code, host, port), mechanism, level, held[used:])


def _granted5(code: int, host: str, port: int) -> tuple[str, int]:
    if code:
        failure, text = _REPLIES5.get(code, ("failed", f"reply {code}"))
        raise ProxyError(failure, text, code)
    return host, port


def _http(command: Command, host: str, port: int, account: Account) -> Dialogue:
    if command is not Command.CONNECT:
        raise ProxyError("failed", f"HTTP has no {command.name}")
    name = host if _address(host) else encode_address(host)[2:].decode()
    if any(character <= " " for character in name):
        raise ValueError("the host's name has a blank or a control character in it")
    where = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n"
    if account.user:
        credentials = b64encode(f"{account.user}:{account.password}".encode()).decode()
        head += f"Proxy-Authorization: Basic {credentials}\r\n"
    status = yield (head + "\r\n").encode(), _HttpStatus()
    if not 200 <= status < 300:
        raise ProxyError(_HTTP.get(status, "failed"), f"HTTP status {status}", status)
    return Granted("", 0)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _pair(version: int) -> Parser:
    """Return a parser of two bytes, a version and a value."""

    def parse(buffer: bytes | bytearray) -> tuple[int, int] | int:
        if buffer and buffer[0] != version:
            raise ProxyError("failed", f"its answer begins with {buffer[0]}, not with {version}")
        return (buffer[1], 2) if len(buffer) >= 2 else 2 - len(buffer)

    return parse


def _message(kind: MessageType) -> Parser:
    """Return a parser of the token of a message of the GSSAPI sub-negotiation."""

    def parse(buffer: bytes | bytearray) -> tuple[bytes, int] | int:
        if buffer and buffer[0] != GSSAPI_VERSION:
            raise ProxyError("failed", f"its GSSAPI message begins with {buffer[0]}, not with {GSSAPI_VERSION}")
        if len(buffer) >= 2 and buffer[1] != kind:
            raise ProxyError("denied", f"its GSSAPI message has the type {buffer[1]}, not {kind}", buffer[1])
        if len(buffer) < 2:
            return 2 - len(buffer)  # an abort has no more
        if len(buffer) < HEADER:
            return HEADER - len(buffer)
        end = HEADER + int.from_bytes(buffer[2:HEADER], "big")
        return (bytes(buffer[HEADER:end]), end) if len(buffer) >= end else end - len(buffer)

    return parse


def _reply4(buffer: bytes | bytearray) -> tuple[tuple[int, str, int], int] | int:
    if buffer and buffer[0]:
        raise ProxyError("failed", f"its answer begins with {buffer[0]}, not with 0")
    if len(buffer) < 8:
        return 8 - len(buffer)
    host = str(ipaddress.IPv4Address(bytes(buffer[4:8])))
    return (buffer[1], host, int.from_bytes(buffer[2:4], "big")), 8


def _reply5(buffer: bytes | bytearray) -> tuple[tuple[int, str, int], int] | int:
    if buffer and buffer[0] != 5:
        raise ProxyError("failed", f"its answer begins with {buffer[0]}, not with 5")
    if len(buffer) < 2:
        return 2 - len(buffer)
    if buffer[1]:  # some proxies end a refusal here
        return (buffer[1], "", 0), 2
    if len(buffer) < 5:
        return 5 - len(buffer)
    match buffer[3]:
        case AddressType.IPV4:
            start, end = 4, 8
        case AddressType.IPV6:
            start, end = 4, 20
        case AddressType.NAME:
            start, end = 5, 5 + buffer[4]
        case kind:
            raise ProxyError("failed", f"its answer has the address type {kind}")
    if len(buffer) < end + 2:
        return end + 2 - len(buffer)
    raw = bytes(buffer[start:end])
    name = buffer[3] == AddressType.NAME
    host = raw.decode("utf-8", "replace") if name else str(ipaddress.ip_address(raw))
    return (0, host, int.from_bytes(buffer[end : end + 2], "big")), end + 2


class _HttpStatus:
    """A parser of the status of an answer whose whole head has come, including interim answers (1xx) before it. What
    follows a success belongs to the tunnel (RFC 9110, 9.3.6). It is given everything that came, and looks at each byte
    once."""

    def __init__(self) -> None:
        self._start = 0  # of the answer, behind the interim ones
        self._seen = 0

    def __call__(self, buffer: bytes | bytearray) -> tuple[int, int] | int:
        while True:
            beginning = bytes(buffer[self._start : self._start + 7])
            if not b"HTTP/1.".startswith(beginning):
                raise ProxyError("failed", "its answer is not HTTP")
            end = buffer.find(b"\r\n\r\n", max(self._start, self._seen - 3), MAX_HTTP_HEAD)
            if end < 0:
                self._seen = len(buffer)
                if len(buffer) > MAX_HTTP_HEAD:
                    raise ProxyError("failed", "the head of its answer is too long")
                return next((n for n, part in enumerate(_ENDING, 1) if buffer.endswith(part)), 4)
            found = _STATUS.match(buffer, self._start)
            if not found:
                raise ProxyError("failed", "its answer is not HTTP")
            self._start = self._seen = end + 4
            if not found[1].startswith(b"1"):  # else it is an interim answer, and the real one follows
                return int(found[1]), self._start

"""The client's side of SOCKS and HTTP CONNECT: what is sent, what is understood, however it is cut."""

from __future__ import annotations

import errno
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.socks.dialogue import Account, Dialogue, Granted, ProxyKind, ask, second_reply
from alg.socks.errors import Failure, ProxyError
from alg.socks.gssapi import Level
from alg.socks.socks5 import Command
from alg.socks.udp import Reassembly, fragments, parse_header


def dialogue(kind: ProxyKind, host: str, port: int, user: str = "", password: str = "") -> Dialogue:
    return ask(kind, Command.CONNECT, host, port, Account(user, password))


def talk(steps: Dialogue, answers: bytes, cuts: list[int] | None = None) -> tuple[list[bytes], bytes]:
    """What is sent, and what of the answers is left for the tunnel. EOFError if they are not enough."""
    sent, held, at = [], b"", 0
    data, parse = next(steps)
    sent.append(data)
    sizes = list(cuts or [len(answers)])
    while True:
        result = parse(held)
        if isinstance(result, int):
            assert result > 0
            if at >= len(answers):
                raise EOFError
            size = sizes.pop(0) if sizes else 1
            held += answers[at : at + size]
            at += size
            continue
        held = held[result[1] :]
        try:
            data, parse = steps.send(result[0])
        except StopIteration:
            return sent, held + answers[at:]
        sent.append(data)


OK4 = b"\0\x5a" + bytes(6)
OK5 = b"\5\0\5\0\0\1" + bytes(6)
OK5_PASSWORD = b"\5\2\1\0\5\0\0\3\4name\0\1"
OK_HTTP = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"

HTTP_CONNECT = (
    b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic YW5uOnB3\r\n\r\n"
)


@pytest.mark.parametrize(
    ("steps", "answers", "sent"),
    [
        (dialogue("socks4a", "192.0.2.1", 80, "me"), OK4, [b"\4\1\0\x50\xc0\0\2\1me\0"]),
        (dialogue("socks4a", "example.com", 80), OK4, [b"\4\1\0\x50\0\0\0\1\0example.com\0"]),
        (dialogue("socks5", "192.0.2.1", 80), OK5, [b"\5\1\0", b"\5\1\0\1\xc0\0\2\1\0\x50"]),
        (dialogue("socks5", "2001:db8::1", 80), OK5, [b"\5\1\0", b"\5\1\0\4 \1\r\xb8" + bytes(11) + b"\1\0\x50"]),
        (
            dialogue("socks5", "a.test", 443, "ann", "pw"),
            OK5_PASSWORD,
            [b"\5\2\0\2", b"\1\3ann\2pw", b"\5\1\0\3\6a.test\1\xbb"],
        ),
        (
            dialogue("http", "2001:db8::1", 443, "ann", "pw"),
            OK_HTTP,
            [
                HTTP_CONNECT,
            ],
        ),
        (
            dialogue("http", "a.test", 22),
            b"HTTP/1.1 100 Continue\r\n\r\n" + OK_HTTP,
            [b"CONNECT a.test:22 HTTP/1.1\r\nHost: a.test:22\r\n\r\n"],
        ),
    ],
)
def test_a_dialogue(steps: Dialogue, answers: bytes, sent: list[bytes]) -> None:
    assert talk(steps, answers + b"tunnel") == (sent, b"tunnel")


@given(st.sampled_from([("socks4a", OK4), ("socks5", OK5), ("http", OK_HTTP)]), st.lists(st.integers(1, 9)))
def test_however_the_answers_are_cut(case: tuple[ProxyKind, bytes], cuts: list[int]) -> None:
    kind, answers = case
    assert talk(dialogue(kind, "192.0.2.1", 80), answers + b"SSH-2.0", cuts or [1])[1] == b"SSH-2.0"


@pytest.mark.parametrize(
    ("kind", "answers", "failure"),
    [
        ("socks4a", b"\0\x5b" + bytes(6), "failed"),
        ("socks4a", b"\0\x5c" + bytes(6), "denied"),
        ("socks4a", b"\5\0", "failed"),
        ("socks5", b"\5\xff", "denied"),
        ("socks5", b"\4\0", "failed"),
        ("socks5", b"\5\2\1\1", "denied"),
        ("socks5", b"\5\0\5\2\0\1" + bytes(6), "denied"),
        ("socks5", b"\5\0\5\3\0\1" + bytes(6), "network"),
        ("socks5", b"\5\0\5\4\0\1" + bytes(6), "host"),
        ("socks5", b"\5\0\5\5\0\1" + bytes(6), "refused"),
        ("socks5", b"\5\0\5\6\0\1" + bytes(6), "timeout"),
        ("socks5", b"\5\0\5\x63\0\1" + bytes(6), "failed"),
        ("socks5", b"\5\0\5\0\0\x09" + bytes(6), "failed"),
        ("http", b"HTTP/1.0 407 Proxy Authentication Required\r\n\r\n", "denied"),
        ("http", b"HTTP/1.1 403 Filtered\r\n\r\n", "denied"),
        ("http", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "host"),
        ("http", b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", "timeout"),
        ("http", b"HTTP/1.1 301 Moved\r\n\r\n", "failed"),
        ("http", b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, "failed"),
        ("http", b"SSH-2.0-OpenSSH\r\n", "failed"),
        ("http", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "failed"),
    ],
)
def test_a_refusal(kind: ProxyKind, answers: bytes, failure: str) -> None:
    with pytest.raises(ProxyError) as caught:
        talk(dialogue(kind, "192.0.2.1", 80, "ann", "pw"), answers)
    assert caught.value.failure == failure


def test_socks_4a_has_no_ipv6() -> None:
    with pytest.raises(ProxyError, match="IPv6"):
        talk(dialogue("socks4a", "2001:db8::1", 80), b"")


@given(st.sampled_from(["socks4a", "socks5", "http"]), st.binary(max_size=300), st.lists(st.integers(1, 20)))
def test_any_bytes_are_an_answer_or_a_clean_error(kind: ProxyKind, answers: bytes, cuts: list[int]) -> None:
    try:
        talk(dialogue(kind, "192.0.2.1", 80, "ann", "pw"), answers, cuts)
    except (ProxyError, EOFError):
        pass


# --- what a program sees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "number", "kind"),
    [
        ("denied", errno.EACCES, PermissionError),
        ("refused", errno.ECONNREFUSED, ConnectionRefusedError),
        ("network", errno.ENETUNREACH, ProxyError),
        ("host", errno.EHOSTUNREACH, ProxyError),
        ("timeout", errno.ETIMEDOUT, TimeoutError),
        ("failed", errno.ECONNABORTED, ConnectionAbortedError),
    ],
)
def test_an_error_is_the_one_of_a_connection_without_a_proxy(failure: Failure, number: int, kind: type) -> None:
    for error in (ProxyError(failure, "why", 5), pickle.loads(pickle.dumps(ProxyError(failure, "why", 5)))):
        assert isinstance(error, kind)
        assert isinstance(error, ProxyError)
        assert (error.errno, error.strerror, str(error)) == (number, "why", "why")
        assert (error.failure, error.reply) == (failure, 5)


# --- other requests, and second replies -----------------------------------------------------------------------------


def finish(steps: Dialogue, answers: bytes) -> tuple[bytes, Granted, bytes]:
    """All that is sent, the result, and what is left of the answers. Reads as a careful client does."""
    data, parse = next(steps)
    sent, held = data, bytearray()
    while True:
        result = parse(held)
        if isinstance(result, int):
            assert len(answers) >= result, "it wants more than the proxy has to say"
            held += answers[:result]
            answers = answers[result:]
            continue
        assert result[1] == len(held), "it has read more than the answer"
        held.clear()
        try:
            data, parse = steps.send(result[0])
            sent += data
        except StopIteration as stop:
            return sent, stop.value, answers


def test_bind_has_two_replies() -> None:
    request = ask("socks5", Command.BIND, "203.0.113.9", 21)
    wire = b"\5\0" + b"\5\0\0\1\xc0\0\2\1\x9c\x40" + b"\5\0\0\1\xcb\0\x71\x09\0\x14" + b"tunnel"
    sent, first, left = finish(request, wire)
    assert sent == b"\5\1\0" + b"\5\2\0\1\xcb\0\x71\x09\0\x15"
    assert (first.host, first.port) == ("192.0.2.1", 40000)
    sent, second, left = finish(second_reply("socks5", first), left)
    assert (sent, second.host, second.port, left) == (b"", "203.0.113.9", 20, b"tunnel")


def test_bind_of_version_4() -> None:
    sent, first, left = finish(ask("socks4", Command.BIND, "203.0.113.9", 21), b"\0\x5a\x9c\x40\xc0\0\2\1" * 2 + b"x")
    assert sent == b"\4\2\0\x15\xcb\0\x71\x09\0"
    assert first[:2] == ("192.0.2.1", 40000)
    assert finish(second_reply("socks4", first), left)[2] == b"x"


def test_names_and_addresses_are_looked_up() -> None:
    sent, found, _ = finish(ask("socks5", Command.RESOLVE, "a.test", 0), b"\5\0\5\0\0\1\xcb\0\x71\x09\0\0")
    assert (sent, found.host) == (b"\5\1\0\5\xf0\0\3\6a.test\0\0", "203.0.113.9")
    _, found, _ = finish(ask("socks5", Command.RESOLVE_PTR, "203.0.113.9", 0), b"\5\0\5\0\0\3\6a.test\0\0")
    assert found.host == "a.test"


def test_a_refusal_of_two_bytes_is_enough() -> None:
    """Some proxies end it there; whoever waits for the rest waits for ever."""
    with pytest.raises(ConnectionRefusedError):
        finish(ask("socks5", Command.CONNECT, "a.test", 1), b"\5\0\5\5")


def test_a_bound_name_may_be_empty() -> None:
    assert finish(ask("socks5", Command.CONNECT, "a.test", 1), b"\5\0\5\0\0\3\0\0\0x")[1:] == (Granted("", 0), b"x")


@pytest.mark.parametrize(
    ("kind", "command", "host"),
    [
        ("socks4", Command.CONNECT, "a.test"),
        ("socks4a", Command.UDP_ASSOCIATE, "0.0.0.0"),
        ("http", Command.BIND, "::"),
    ],
)
def test_what_a_protocol_cannot(kind: ProxyKind, command: Command, host: str) -> None:
    with pytest.raises(ProxyError):
        next(ask(kind, command, host, 1))


@pytest.mark.parametrize(
    ("kind", "host"),
    [
        ("socks4a", ""),
        ("socks4a", "a" * 256),
        ("socks4a", "a\0b"),
        ("socks5", ""),
        ("socks5", "a" * 256),
        ("http", ""),
        ("http", "a\r\nX: y"),
        ("http", "a b"),
        ("http", "a" * 256),
    ],
)
def test_a_host_that_would_break_the_message(kind: ProxyKind, host: str) -> None:
    with pytest.raises(ValueError, match="name"):
        next(ask(kind, Command.CONNECT, host, 1))


# --- GSSAPI: a mechanism without cryptography, so that each message can be seen --------------------------------------


class Plain:
    """Two steps; a token says how it is protected."""

    def __init__(self) -> None:
        self.complete = False
        self.steps: list[bytes | None] = []

    def step(self, token: bytes | None) -> bytes:
        self.steps.append(token)
        if token == b"wrong":
            raise ValueError("not the proxy")
        self.complete = token is not None
        return b"" if token else b"hello"

    def wrap(self, data: bytes, level: Level) -> bytes:
        return bytes((level,)) + data

    def unwrap(self, token: bytes, level: Level) -> bytes:
        if token[:1] != bytes((level,)):
            raise ValueError("not protected so")
        return token[1:]


def message(kind: int, token: bytes) -> bytes:
    return bytes((1, kind)) + len(token).to_bytes(2, "big") + token


REPLY = b"\5\0\0\1\xc0\0\2\1\0\x50"


def test_gssapi_with_confidentiality() -> None:
    steps = ask("socks5", Command.CONNECT, "a.test", 80, Account(mechanism=Plain()))
    answers = b"\5\1" + message(1, b"welcome") + message(2, b"\1\2")
    answers += message(3, b"\2" + REPLY[:3]) + message(3, b"\2" + REPLY[3:] + b"early") + message(3, b"\2later")
    sent, granted, left = finish(steps, answers)
    assert sent == b"\5\1\1" + message(1, b"hello") + message(2, b"\1\2") + message(3, b"\2\5\1\0\3\6a.test\0\x50")
    assert (granted.level, granted.early) == (Level.CONFIDENTIALITY, b"early")
    assert left == message(3, b"\2later")


def test_gssapi_without_protection() -> None:
    steps = ask("socks5", Command.CONNECT, "a.test", 80, Account(mechanism=Plain(), level=Level.NONE))
    granted = finish(steps, b"\5\1" + message(1, b"welcome") + message(2, b"\1\0") + REPLY)[1]
    assert granted.level is Level.NONE


@pytest.mark.parametrize(
    "answers",
    [
        b"\5\0",  # it takes anybody: not what was asked for
        b"\5\1\1\xff",
        b"\5\1" + message(1, b"wrong"),
        b"\5\1" + message(1, b"welcome") + message(2, b"\1\1"),  # less protection
        b"\5\1" + message(1, b"welcome") + message(2, b"\0\2"),  # said without protection
        b"\5\1" + message(1, b"welcome") + message(2, b"\1\2") + message(3, b"\1" + REPLY),
    ],
)
def test_gssapi_that_is_talked_down(answers: bytes) -> None:
    with pytest.raises(ProxyError):
        finish(ask("socks5", Command.CONNECT, "a.test", 80, Account(mechanism=Plain())), answers)


def test_an_account_shows_no_password() -> None:
    assert "secret" not in repr(Account("ann", "secret")) + str([Account("ann", "secret")])


# --- datagrams ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.integers(4, 300), st.sampled_from(["192.0.2.1", "2001:db8::1", "a.test"]))
def test_fragments_are_put_together_again(data: bytes, size: int, host: str) -> None:
    queue = Reassembly()
    parts = fragments(host, 5060, data, size)
    assert len(parts) == max(1, -(-len(data) // size))
    for number, datagram in enumerate(parts, 1):
        header, end = parse_header(datagram)
        assert (header.host, header.port) == (host, 5060)
        whole = queue.add(header, datagram[end:], 1.0)
        assert whole == (data if number == len(parts) else None)


def test_more_fragments_than_there_are_positions() -> None:
    assert len(fragments("192.0.2.1", 1, bytes(126), 1)) == 126
    with pytest.raises(ValueError, match="fragments"):
        fragments("192.0.2.1", 1, bytes(128), 1)

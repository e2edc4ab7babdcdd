"""HTTP CONNECT as the proxy reads it."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.socks.dialogue import Account, ask
from alg.socks.http import MAX_FIELDS, MAX_HEAD, HeadReader, Request, encode_answer, parse_request
from alg.socks.password import Credentials
from alg.socks.socks5 import Command, SocksError

CURL = (
    b"CONNECT www.example.org:443 HTTP/1.1\r\nHost: www.example.org:443\r\n"
    b"Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\nUser-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\n\r\n"
)


def test_a_request_and_what_is_behind_it() -> None:
    found = parse_request(CURL + b"\x16\x03\x01")
    assert found == (Request("www.example.org", 443, Credentials(b"ann", b"secret")), len(CURL))
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("line", "host", "port"),
    [
        (b"CONNECT [2001:db8::1]:22 HTTP/1.1", "2001:db8::1", 22),
        (b"CONNECT 192.0.2.1:1 HTTP/1.0", "192.0.2.1", 1),
        (b"CONNECT a_b.test:65535 HTTP/1.1", "a_b.test", 65535),
    ],
)
def test_targets(line: bytes, host: str, port: int) -> None:
    found = parse_request(line + b"\r\n\r\n")
    assert found is not None
    assert found[0] == Request(host, port, None)
    assert parse_request(b"\r\n" + line + b"\r\n\r\n") is not None


@given(st.integers(0, len(CURL) - 1))
def test_a_part_is_not_enough(cut: int) -> None:
    assert parse_request(CURL[:cut]) is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"POST http://a/ HTTP/1.1\r\n\r\n", 405),
        (b"CONNECT a.test HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:0 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:70000 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT 2001:db8::1:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT user@a.test:80 HTTP/2.0\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nno field\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nProxy-Authorization: Basic !\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\nProxy-Authorization: Basic YW5u\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\n" + b"Proxy-Authorization: Basic YTpi\r\n" * 2 + b"\r\n", 400),
        (b"CONNECT a\xff.test:80 HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\n" + b"A: b\r\n" * MAX_HEAD, 400),
        (b"CONNECT a.test:80 HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", 400),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(SocksError) as caught:
        parse_request(head)
    assert caught.value.reply == status
    assert encode_answer(status).startswith(f"HTTP/1.1 {status} ".encode())


def test_as_many_fields_as_are_allowed() -> None:
    assert parse_request(b"CONNECT a.test:80 HTTP/1.1\r\n" + b"A: b\r\n" * MAX_FIELDS + b"\r\n") is not None


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for prefix in (b"", b"CONNECT ", b"CONNECT a:1 HTTP/1.1\r\n"):
        try:
            found = parse_request(prefix + data)
        except SocksError:
            continue
        assert found is None or found[1] <= len(prefix + data)


@given(st.ip_addresses(), st.integers(1, 65535), st.text("abc:=\u00e4", max_size=20))
def test_what_our_own_client_sends(host: object, port: int, password: str) -> None:
    data, parse = next(ask("http", Command.CONNECT, str(host), port, Account("ann", password)))
    request = Request(str(host), port, Credentials(b"ann", password.encode()))
    assert parse_request(data) == (request, len(data))
    assert parse(encode_answer(200)) == (200, len(encode_answer(200)))


@pytest.mark.parametrize("line", [b"a:" + b" " * 16000 + b"\n", b"a:x" + b" " * 16000 + b"x", b"a:" + b" \t" * 8000])
def test_a_line_costs_time_linear_in_its_bytes(line: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(SocksError):
        parse_request(b"CONNECT a.test:80 HTTP/1.1\r\n" + line + b"\r\n\r\n")
    assert time.process_time() - began < 0.1


HEADS = st.lists(st.sampled_from([b"CONNECT a:1 HTTP/1.1", b"a: b", b"\r\n", b"\r", b"\n", b"x"]), max_size=12)


@given(HEADS.map(b"".join), st.lists(st.integers(1, 9), max_size=60))
def test_a_head_that_grows_is_read_as_at_once(data: bytes, steps: list[int]) -> None:
    read = HeadReader()
    at = 0
    for step in (*steps, len(data)):
        at += step
        try:
            expected = parse_request(data[:at])
        except SocksError as error:
            with pytest.raises(SocksError, match=re.escape(str(error))):
                read(data[:at])
            return
        assert read(data[:at]) == expected
        if expected is not None:
            return

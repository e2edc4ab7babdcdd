"""The client's side of SOCKS and HTTP CONNECT: what is sent, what is understood, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.upstream_wire import Dialogue, Kind, UpstreamError, dialogue


def talk(steps: Dialogue, answers: bytes, cuts: list[int] | None = None) -> tuple[list[bytes], bytes]:
    """What is sent, and what of the answers is left for the tunnel. EOFError if they are not enough."""
    sent, held, at = [], b"", 0
    data, parse = next(steps)
    sent.append(data)
    sizes = list(cuts or [len(answers)])
    while True:
        result = parse(held)
        if result is None:
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
def test_however_the_answers_are_cut(case: tuple[Kind, bytes], cuts: list[int]) -> None:
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
def test_a_refusal(kind: Kind, answers: bytes, failure: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        talk(dialogue(kind, "192.0.2.1", 80, "ann", "pw"), answers)
    assert caught.value.failure == failure


def test_socks_4a_has_no_ipv6() -> None:
    with pytest.raises(UpstreamError, match="IPv6"):
        talk(dialogue("socks4a", "2001:db8::1", 80), b"")


@given(st.sampled_from(["socks4a", "socks5", "http"]), st.binary(max_size=300), st.lists(st.integers(1, 20)))
def test_any_bytes_are_an_answer_or_a_clean_error(kind: Kind, answers: bytes, cuts: list[int]) -> None:
    try:
        talk(dialogue(kind, "192.0.2.1", 80, "ann", "pw"), answers, cuts)
    except (UpstreamError, EOFError):
        pass

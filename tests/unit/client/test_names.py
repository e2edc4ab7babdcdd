"""The name server of `algate exec`."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.engine.names import FAKE, Names, encode_answer, parse_question
from gateway.client.proxy import Chain
from tests.unit.client.scripted import GREETING, receive, scripted


def ask(names: Names, name: str, kind: str = "A") -> dns.message.Message:
    answer = names.answer(dns.message.make_query(name, kind).to_wire())
    assert answer is not None
    return dns.message.from_wire(answer)


def values(message: dns.message.Message) -> list[str]:
    return [str(value) for rrset in message.answer for value in rrset]


def fake() -> Names:
    return Names(Chain.of("http://127.0.0.1:9"), "auto", 1)


def test_an_address_stands_for_a_name() -> None:
    names = fake()
    (address,) = values(ask(names, "www.example.org"))
    assert names.host_of(address) == "www.example.org"
    assert values(ask(names, "WWW.example.org")) == [address]
    assert values(ask(names, "other.example.org")) != [address]
    assert values(ask(names, "www.example.org", "AAAA")) == []
    assert values(ask(names, "www.example.org", "HTTPS")) == []
    pointer = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert values(ask(names, pointer, "PTR")) == ["www.example.org."]


def test_an_address_that_stands_for_nothing_never_leaves() -> None:
    names = fake()
    with pytest.raises(OSError, match="stands for no name"):
        names.host_of(str(FAKE[77]))
    assert names.host_of("192.0.2.1") == "192.0.2.1"
    assert names.host_of("2001:db8::1") == "2001:db8::1"


RESOLVE = b"\5\xf0\0\3\6a.test\0\0"


@pytest.mark.parametrize(
    ("reply", "kind", "code", "found"),
    [
        (b"\5\0\0\1\xcb\0\x71\x09\0\0", "A", 0, ["203.0.113.9"]),
        (b"\5\0\0\1\xcb\0\x71\x09\0\0", "AAAA", 0, []),
        (b"\5\4\0", "A", 3, []),
        (b"\5\2\0", "A", 2, []),
        (b"\5\7\0", "A", 0, ["198.18.0.1"]),  # it has no RESOLVE: the name is told to it later
        (b"", "A", 0, ["198.18.0.1"]),  # nor has `ssh -D`, which closes the connection
    ],
)
def test_what_the_proxy_says(reply: bytes, kind: str, code: int, found: list[str]) -> None:
    with scripted(GREETING, (RESOLVE, reply), ends=not reply) as proxy:
        answer = ask(Names(Chain.of(f"127.0.0.1:{proxy.port}"), "auto", 5), "a.test", kind)
    assert (answer.rcode(), values(answer)) == (code, found)


@pytest.mark.parametrize("answer", [b"", b"\5\7\0"])
def test_two_questions_at_once_of_a_proxy_that_has_no_resolve(answer: bytes) -> None:
    """As a C library asks them: for A and AAAA. Both are on their way when the first answer comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        socks = [listener.accept()[0] for _ in range(2)]
        for sock in socks:
            receive(sock, 3)
            sock.sendall(b"\5\0")
            receive(sock, len(RESOLVE))
        for sock in socks:
            sock.sendall(answer)
            sock.close()

    names = Names(Chain.of(f"127.0.0.1:{listener.getsockname()[1]}"), "auto", 5)
    with listener, ThreadPoolExecutor() as threads:
        serving = threads.submit(serve)
        asked = [threads.submit(ask, names, "a.test", kind) for kind in ("A", "AAAA")]
        serving.result(20)
        assert [(one.result(20).rcode(), values(one.result())) for one in asked] == [(0, ["198.18.0.1"]), (0, [])]


@pytest.mark.parametrize(
    ("mode", "reply", "why"),
    [
        ("auto", b"\5\2\0", ["not allowed"]),
        ("resolve", b"\5\7\0", ["not supported"]),
        ("resolve", b"", ["closed the connection"]),
        ("auto", b"\5\4\0", []),  # there is no such name, which the program is told
        ("auto", b"\5\7\0", []),
    ],
)
def test_why_a_proxy_does_not_answer_is_said(mode: str, reply: bytes, why: list[str]) -> None:
    """The program learns no more than that there is no answer, which might be for a wrong password."""
    said: list[str] = []
    with scripted(GREETING, (RESOLVE, reply), ends=True) as proxy:
        ask(Names(Chain.of(f"127.0.0.1:{proxy.port}"), mode, 5, said.append), "a.test")
    assert len(said) == len(why)
    for text, word in zip(said, why, strict=True):
        assert text.startswith("a name was not resolved: socks5://127.0.0.1:")
        assert word in text


def test_a_pointer() -> None:
    with scripted(GREETING, (b"\5\xf1\0\1\xcb\0\x71\x09\0\0", b"\5\0\0\3\6a.test\0\0")) as proxy:
        names = Names(Chain.of(f"127.0.0.1:{proxy.port}"), "resolve", 5)
        assert values(ask(names, "9.113.0.203.in-addr.arpa", "PTR")) == ["a.test."]


def test_another_server_by_tcp() -> None:
    query = dns.message.make_query("a.test", "TXT").to_wire()
    question = parse_question(query)
    answer = encode_answer(query, question, 0, [b"\2hi"])
    wires = [len(wire).to_bytes(2, "big") + wire for wire in (query, answer)]
    server = (b"\5\1\0\1\xc0\0\2\x35\0\x35", b"\5\0\0\1" + bytes(6))
    with scripted(GREETING, server, (wires[0], wires[1])) as proxy:
        names = Names(Chain.of(f"127.0.0.1:{proxy.port}"), "tcp:192.0.2.53", 5)
        assert names.answer(query) == answer


@pytest.mark.parametrize("kind", ["A", "AAAA", "PTR", "TXT"])
def test_nothing_is_asked_where_names_are_off(kind: str) -> None:
    with scripted() as proxy:
        answer = ask(Names(Chain.of(f"127.0.0.1:{proxy.port}"), "off", 1), "a.test", kind)
        assert (answer.rcode(), proxy.heard) == (dns.rcode.REFUSED, b"")


def test_localhost_is_the_programs_own() -> None:
    assert values(ask(fake(), "localhost")) == ["127.0.0.1"]
    assert values(ask(fake(), "a.localhost", "AAAA")) == ["::1"]


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    names = fake()
    for query in (data, b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + data):
        answer = names.answer(query)
        if answer is not None:
            assert answer[:2] == query[:2]
            assert answer[2] & 0x80


def test_an_answer_is_read_by_others() -> None:
    query = dns.message.make_query("a.test", "A").to_wire()
    answer = dns.message.from_wire(encode_answer(query, parse_question(query), 0, [socket.inet_aton("192.0.2.1")]))
    assert values(answer) == ["192.0.2.1"]
    assert answer.answer[0].ttl == 1

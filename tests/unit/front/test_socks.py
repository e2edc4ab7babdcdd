"""SOCKS 4, 4a and 5: what the codecs read, what they refuse, and that the cut of the stream does not matter."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint, canonical
from alg.socks import socks4, socks5
from alg.socks.socks5 import Command, Method, Reply, SocksError
from alg.socks.udp import parse_header
from gateway.model.hosts import read_host

Parser = Callable[[bytes], tuple[Any, int] | None]

names = st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True)
ports = st.integers(0, 65535)
rest = st.binary(max_size=20)


def outcome(parse: Parser, buffer: bytes) -> Any:
    """What a parser says of `buffer`, errors as values."""
    try:
        return parse(buffer)
    except SocksError as error:
        return error.reply, str(error)


def request5(command: int, kind: int, address: bytes, port: int) -> bytes:
    return bytes((5, command, 0, kind)) + address + struct.pack("!H", port)


def request4(command: int, address: str, port: int, userid: bytes, name: bytes | None = None) -> bytes:
    fixed = struct.pack("!BBH", 4, command, port) + IPv4Address(address).packed + userid + b"\0"
    return fixed if name is None else fixed + name + b"\0"


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (b"[2001:DB8::1]", "2001:db8::1"),
        (b"[::ffff:192.0.2.1]", "192.0.2.1"),
        (b"[fe80::1%1]", "[fe80::1%1]"),  # no name either, which is said later
        (b"[192.0.2.1]", "192.0.2.1"),
        (b"[files.example]", "[files.example]"),
        (b"[2001:db8::1", "[2001:db8::1"),
        (b"[]", "[]"),
    ],
)
def test_an_address_in_brackets(name: bytes, host: str) -> None:
    """As it stands in a URL, where a client handed it on without a look (RFC 3986, 3.2.2)."""
    assert read_host(socks5.decode_name(name, Reply.GENERAL_FAILURE)) == host


# --- any bytes -------------------------------------------------------------------------------------------------------

versioned = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from(
        [b"", b"\5", b"\5\1\0\1", b"\5\1\0\3", b"\5\1\0\4", b"\5\2\0\3\4abcd", b"\4\1", b"\4\1\0\x15\0\0\0\1"]
    ),
    st.binary(max_size=600),
)


@pytest.mark.parametrize(
    ("parse", "limit"),
    [
        (socks5.parse_greeting, 257),
        (socks5.parse_request, socks5.MAX_MESSAGE),
        (socks4.parse_request, socks4.MAX_MESSAGE),
    ],
)
@given(buffer=versioned)
def test_byte_by_byte_is_the_same_as_at_once(parse: Parser, limit: int, buffer: bytes) -> None:
    whole = outcome(parse, buffer)
    first = next((got for end in range(len(buffer) + 1) if (got := outcome(parse, buffer[:end])) is not None), None)
    assert first == whole
    if len(buffer) >= limit:
        assert whole is not None, "a parser never waits for more than the longest message"


@given(buffer=st.binary(min_size=8, max_size=300))
def test_long_user_ids_and_names_end(buffer: bytes) -> None:
    body = bytes(byte or 1 for byte in buffer)
    got = outcome(socks4.parse_request, b"\4\1\0\x15\1\2\3\4" + body)
    assert (got is None) == (len(body) <= 255)
    got = outcome(socks4.parse_request, b"\4\1\0\x15\0\0\0\4\0" + body)
    assert (got is None) == (len(body) <= 255)


# --- SOCKS 5 ---------------------------------------------------------------------------------------------------------


@given(methods=st.binary(max_size=255), behind=rest)
def test_greeting(methods: bytes, behind: bytes) -> None:
    wire = bytes((5, len(methods))) + methods
    assert socks5.parse_greeting(wire + behind) == (socks5.Greeting(tuple(methods)), len(wire))


@given(command=st.sampled_from(Command), ip=st.ip_addresses(), port=ports, behind=rest)
def test_request_with_an_address(command: Command, ip: IPv4Address | IPv6Address, port: int, behind: bytes) -> None:
    wire = request5(command, 1 if ip.version == 4 else 4, ip.packed, port)
    assert socks5.parse_request(wire + behind) == (socks5.Request(command, str(canonical(ip)), port), len(wire))


@given(command=st.sampled_from(Command), name=names, port=ports, behind=rest)
def test_request_with_a_name(command: Command, name: str, port: int, behind: bytes) -> None:
    wire = request5(command, 3, bytes((len(name),)) + name.encode(), port)
    assert socks5.parse_request(wire + behind) == (socks5.Request(command, name, port), len(wire))


def test_request_with_an_international_name() -> None:
    name = "bücher.example".encode()
    parsed = socks5.parse_request(request5(1, 3, bytes((len(name),)) + name, 80))
    assert parsed is not None
    assert read_host(parsed[0].host) == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("[2001:db8::1]", "2001:db8::1"),
        ("[::ffff:192.0.2.1]", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("WWW.Example.", "www.example"),
        ("-begins.and-.ends-", "-begins.and-.ends-"),
        ("2001:db8::1%eth0", "2001:db8::1%eth0"),
        ("[192.0.2.1]", "192.0.2.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0XC0000201", "192.0.2.1"),
        ("192.0.513", "192.0.2.1"),
        ("[192.0.0x201]", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        # What two readers read differently (octal or not), and what nobody reads.
        ("0177.0.0.1", "0177.0.0.1"),
        ("010.0.0.1", "010.0.0.1"),
        ("127.0.0.01", "127.0.0.01"),
        ("192.0.2.256", "192.0.2.256"),
        ("4294967296", "4294967296"),
        ("256.1", "256.1"),
        ("192.0.2.1.", "192.0.2.1."),
        ("0x", "0x"),
        ("1..1", "1..1"),
        ("::ffff:127.1", "::ffff:127.1"),
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("[fe80::1%25eth0]", "[fe80::1%25eth0]"),
    ],
)
def test_one_spelling_for_one_host(written: str, host: str) -> None:
    wire = request5(1, 3, bytes((len(written),)) + written.encode(), 80)
    parsed = socks5.parse_request(wire)
    assert parsed == (socks5.Request(socks5.Command.CONNECT, written, 80), len(wire))
    assert read_host(written) == host


def test_a_nul_at_the_end_is_no_part_of_a_name() -> None:
    """LacticWhale/socks_dart#15: the length counts it. One in the middle, or a second one, is none of a name's."""
    wire = request5(1, 3, b"\x10example.example\0", 80)
    assert socks5.parse_request(wire) == (socks5.Request(socks5.Command.CONNECT, "example.example", 80), len(wire))
    assert parse_header(b"\0\0\0" + wire[3:])[0].host == "example.example"


@pytest.mark.parametrize(
    "name",
    [b"", b"\0", b"a\0\0", b"a b", b"a\0b", b"a\r\n", b"\x7f", b"\xff\xfe", "a\u200b.b".encode(), "a\u2028".encode()],
)
def test_names_that_cannot_be(name: bytes) -> None:
    with pytest.raises(SocksError) as caught:
        socks5.parse_request(request5(1, 3, bytes((len(name),)) + name, 80))
    assert caught.value.reply == Reply.GENERAL_FAILURE


def test_what_socks5_refuses() -> None:
    assert outcome(socks5.parse_greeting, b"GET / HTTP/1.1")[0] is None
    assert outcome(socks5.parse_request, b"\4\1\0\1")[0] is None
    assert outcome(socks5.parse_request, b"\5\1\0\2a")[0] == Reply.ADDRESS_TYPE_NOT_SUPPORTED
    unknown = request5(9, 1, b"\1\2\3\4", 80)
    assert outcome(socks5.parse_request, unknown[:-1]) is None, "not before the request is whole"
    assert outcome(socks5.parse_request, unknown)[0] == Reply.COMMAND_NOT_SUPPORTED


@given(reply=st.sampled_from(Reply), ip=st.ip_addresses(), port=ports)
def test_reply(reply: Reply, ip: IPv4Address | IPv6Address, port: int) -> None:
    wire = socks5.encode_reply(reply, Endpoint.of(ip, port))
    kind, length = {4: (1, 4), 6: (4, 16)}[ip.version]
    assert wire[:4] == bytes((5, reply, 0, kind))
    assert wire[4 : 4 + length] == ip.packed
    assert wire[4 + length :] == struct.pack("!H", port)


def test_reply_without_endpoint_and_with_a_name() -> None:
    assert socks5.encode_reply(Reply.CONNECTION_REFUSED) == b"\5\5\0\1\0\0\0\0\0\0"
    assert socks5.encode_reply(Reply.SUCCEEDED, "a.example") == b"\5\0\0\3\x09a.example\0\0"
    for name in ("", "a" * 256):
        with pytest.raises(ValueError, match="does not fit"):
            socks5.encode_reply(Reply.SUCCEEDED, name)


def test_the_answer_to_an_offer_of_methods() -> None:
    assert socks5.encode_method(Method.NO_ACCEPTABLE) == b"\5\xff"


# --- SOCKS 4 ---------------------------------------------------------------------------------------------------------

userids = st.binary(max_size=255).map(lambda raw: raw.replace(b"\0", b"x"))


@given(command=st.sampled_from(socks4.Command), ip=st.ip_addresses(v=4), port=ports, userid=userids, behind=rest)
def test_socks4(command: socks4.Command, ip: IPv4Address, port: int, userid: bytes, behind: bytes) -> None:
    if 0 < int(ip) < 256:
        return  # that is 4a
    wire = request4(command, str(ip), port, userid)
    assert socks4.parse_request(wire + behind) == (socks4.Request(command, str(ip), port, userid), len(wire))


@given(last=st.integers(1, 255), name=names, port=ports, userid=userids, behind=rest)
def test_socks4a(last: int, name: str, port: int, userid: bytes, behind: bytes) -> None:
    wire = request4(1, f"0.0.0.{last}", port, userid, name.encode())
    expected = socks4.Request(socks4.Command.CONNECT, name, port, userid)
    assert socks4.parse_request(wire + behind) == (expected, len(wire))


def test_what_socks4_refuses() -> None:
    assert outcome(socks4.parse_request, b"\5")[0] is None
    assert outcome(socks4.parse_request, request4(3, "1.2.3.4", 80, b""))[0] == socks4.Reply.REJECTED
    assert outcome(socks4.parse_request, request4(1, "0.0.0.1", 80, b"", b""))[0] == socks4.Reply.REJECTED
    assert outcome(socks4.parse_request, request4(1, "0.0.0.1", 80, b"", b"a b"))[0] == socks4.Reply.REJECTED


def test_socks4_reply() -> None:
    assert socks4.encode_reply(socks4.Reply.GRANTED, Endpoint("203.0.113.9", 258)) == b"\0\x5a\1\2\xcb\x00\x71\x09"
    assert socks4.encode_reply(socks4.Reply.GRANTED, Endpoint("2001:db8::1", 258)) == b"\0\x5a" + bytes(6)
    assert socks4.encode_reply(socks4.Reply.REJECTED) == b"\0\x5b" + bytes(6)

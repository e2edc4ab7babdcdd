"""RFC 1929 and RFC 1961 on the wire: every message in every piece, and nothing that is not one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from alg.socks.gssapi import (
    ABORT,
    MAX_TOKEN,
    Level,
    MessageType,
    choose_level,
    encode_message,
    parse_message,
)
from alg.socks.password import Credentials, parse_credentials
from alg.socks.socks5 import SocksError

CONF, INTEG, NONE = Level.CONFIDENTIALITY, Level.INTEGRITY, Level.NONE


@given(st.binary(max_size=255), st.binary(max_size=255), st.binary(max_size=20))
def test_credentials_come_whole_or_not_at_all(user: bytes, password: bytes, behind: bytes) -> None:
    wire = bytes([1, len(user)]) + user + bytes([len(password)]) + password
    assert all(parse_credentials(wire[:end]) is None for end in range(len(wire)))
    assert parse_credentials(wire + behind) == (Credentials(user, password), len(wire))


@given(st.binary(max_size=600))
def test_any_bytes_are_credentials_or_an_error(data: bytes) -> None:
    try:
        found = parse_credentials(data)
    except SocksError:
        assert data[0] != 1
    else:
        assert found is None or found[1] <= min(len(data), 513)


def test_a_password_shows_nowhere() -> None:
    credentials = Credentials(b"ann", b"hidden")
    for text in (repr(credentials), str(credentials), f"{credentials}", pretty_repr(credentials)):
        assert "hidden" not in text
        assert "ann" in text


@given(st.sampled_from(MessageType), st.binary(max_size=300), st.binary(max_size=20))
def test_a_gssapi_message_comes_whole_or_not_at_all(kind: MessageType, token: bytes, behind: bytes) -> None:
    wire = encode_message(kind, token)
    assert all(parse_message(wire[:end], kind) is None for end in range(len(wire)))
    assert parse_message(wire + behind, kind) == (token, len(wire))


@given(st.binary(max_size=300), st.sampled_from(MessageType))
def test_any_bytes_are_a_gssapi_message_or_an_error(data: bytes, kind: MessageType) -> None:
    try:
        found = parse_message(data, kind)
    except SocksError:
        assert data[0] != 1 or data[1] != kind
    else:
        assert found is None or found[1] == 4 + len(found[0]) <= len(data)


def test_the_longest_token_fits_and_a_longer_one_does_not() -> None:
    assert len(encode_message(MessageType.ENCAPSULATION, bytes(MAX_TOKEN))) == MAX_TOKEN + 4
    with pytest.raises(ValueError, match="does not fit"):
        encode_message(MessageType.ENCAPSULATION, bytes(MAX_TOKEN + 1))


def test_an_abort_of_the_client_is_an_end() -> None:
    with pytest.raises(SocksError):
        parse_message(ABORT, MessageType.AUTHENTICATION)


@pytest.mark.parametrize(
    ("offered", "allowed", "chosen"),
    [
        (CONF, [CONF, INTEG], CONF),
        (INTEG, [CONF, INTEG], INTEG),
        (INTEG, [CONF], CONF),  # the client may go then
        (CONF, [INTEG], INTEG),
        (Level.SELECTIVE, [CONF, INTEG], CONF),
        (NONE, [CONF, INTEG], None),
        (NONE, [CONF, NONE], NONE),
        (CONF, [NONE], None),  # never less than nothing of what was asked for
        (7, [CONF, INTEG, NONE], None),
    ],
)
def test_the_level_of_protection(offered: int, allowed: list[Level], chosen: Level | None) -> None:
    assert choose_level(offered, allowed) is chosen

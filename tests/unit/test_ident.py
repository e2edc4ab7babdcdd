"""What an ident server may say (RFC 1413), and what we make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.front.auth.ident import parse_reply


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"6191, 23 : USERID : UNIX : stjohns", "stjohns"),
        (b"6191,23:USERID:UNIX:ann", "ann"),
        (b"6191, 23 : USERID : UNIX , US-ASCII : ann", "ann"),
        (b"6191, 23 : USERID : OTHER : StJohns-DD-MI-CSEE-OSD", None),
        (b"6191, 23 : ERROR : NO-USER", None),
        (b"6191, 24 : USERID : UNIX : ann", None),  # about another connection
        (b"23, 6191 : USERID : UNIX : ann", None),
        (b"6191, 23 : USERID : UNIX : ", None),
        (b"6191, 23 : USERID : UNIX : ann bob", None),
        (b"6191, 23 : USERID : UNIX : a\0b", None),
        (b"6191, 23 : USERID : UNIX : a\nb", None),
        (b"6191, 23 : USERID : UNIX : \xff", None),
        (b"6191, 23 : USERID : UNIX : " + b"x" * 256, None),
        (b"", None),
    ],
)
def test_a_reply(line: bytes, name: str | None) -> None:
    assert parse_reply(line, 6191, 23) == name


@given(st.binary(max_size=300))
def test_any_bytes_are_a_name_or_nothing(data: bytes) -> None:
    parse_reply(data, 6191, 23)
    name = parse_reply(b"6191, 23 : USERID : UNIX : " + data, 6191, 23)
    assert name is None or not set(name) & set(" \r\n\t:\0")

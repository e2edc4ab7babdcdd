"""Heads of SIP and RTSP, cut into lines: the short way for the plain ones reads what the long way reads."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alg.text.header import Malformed, read_head

PIECES = st.lists(
    st.sampled_from([b"a", b":", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"b: c\r\n", b"\0"]), max_size=30
)
LINE = re.compile(rb"[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n)*")


def by_the_rules(data: bytes, at: int) -> tuple[list[bytes], int] | None:
    """The slowest way: up to the first empty line, one logical line after another; None for what is malformed."""
    lines: list[bytes] = []
    where = at
    while True:
        if empty := re.compile(rb"\r?\n").match(data, where):
            return lines, empty.end()
        match = LINE.match(data, where)
        if match is None or match[0][:1] in (b" ", b"\t"):
            return None
        lines.append(match[0])
        where = match.end()


@given(PIECES)
@example([b"b: c\r\n", b"\r\n\r\n"])
@example([b"b: c\r\n", b" ", b"\r\n", b"\r\n"])
@example([b"\n", b"a", b"\r\n\r\n"])
@example([b"a", b"\r", b"b: c\r\n", b"\r\n"])
def test_lines_of_a_head(pieces: list[bytes]) -> None:
    data = b"OPTIONS sip:a SIP/2.0\r\n" + b"".join(pieces)
    at = data.index(b"\n") + 1
    expected = by_the_rules(data, at)
    if expected is None:
        with pytest.raises(Malformed):
            read_head(data, at)
    else:
        assert read_head(data, at) == expected

"""alg.lines: not one byte changed, whatever the pieces; long lines are never taken for lines; linear."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from alg.lines import LineBuffer, Lines

text = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"bcdefg", b"\xff\x00"]), max_size=30).map(b"".join)


def test_lines_keep_their_ends() -> None:
    buffer = LineBuffer()
    assert buffer.feed(b"USER a\r\nPA") == [Lines(b"USER a\r\n")]
    assert buffer.beginning(9) == b"PA"
    assert buffer.feed(b"SS b\n\n") == [Lines(b"PASS b\n\n")]
    assert len(buffer) == 0


def test_a_long_line_is_unread_to_its_end() -> None:
    buffer = LineBuffer(bound=8)
    assert buffer.feed(b"1234567\n") == [Lines(b"1234567\n")]
    assert buffer.feed(b"12345678") == []
    assert buffer.feed(b"9") == [Lines(b"123456789", whole=False)]
    assert buffer.feed(b"PORT\nb\n") == [Lines(b"PORT\n", whole=False), Lines(b"b\n")]
    assert buffer.feed(b"a\n12345678\nb\n") == [Lines(b"a\n"), Lines(b"12345678\n", whole=False), Lines(b"b\n")]


def test_the_end_of_a_released_line_is_unread() -> None:
    buffer = LineBuffer()
    assert buffer.release() == b""
    assert buffer.feed(b"a\nPO") == [Lines(b"a\n")]
    assert buffer.release() == b"PO"
    assert buffer.feed(b"RT") == [Lines(b"RT", whole=False)]
    assert buffer.feed(b"\nb\n") == [Lines(b"\n", whole=False), Lines(b"b\n")]


@given(st.lists(text), st.integers(1, 12))
@example([b"abc", b"\n"], 3)
def test_pieces_do_not_matter(pieces: list[bytes], bound: int) -> None:
    """Every byte comes out once and in order; the whole lines are the lines of at most `bound` bytes."""
    buffer = LineBuffer(bound)
    found = []
    for piece in pieces:
        found += buffer.feed(piece)
        assert len(buffer) <= bound
    data = b"".join(pieces)
    assert b"".join(item.data for item in found) + buffer.beginning(bound) == data
    ended = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    whole = b"".join(item.data for item in found if item.whole)
    assert whole == b"".join(line + b"\n" for line in ended if len(line) < bound)
    assert all(item.data for item in found)

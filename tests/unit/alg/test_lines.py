"""alg.lines: not one byte changed, whatever the pieces; long lines are never taken for lines."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from alg.lines import Line, LineBuffer

text = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"bcdefg", b"\xff\x00"]), max_size=30).map(b"".join)


def test_lines_keep_their_ends() -> None:
    buffer = LineBuffer()
    assert buffer.feed(b"USER a\r\nPA") == [Line(b"USER a\r\n")]
    assert buffer.partial == b"PA"
    assert buffer.feed(b"SS b\n\n") == [Line(b"PASS b\n"), Line(b"\n")]


def test_a_long_line_is_unread_to_its_end() -> None:
    buffer = LineBuffer(bound=8)
    assert buffer.feed(b"1234567\n") == [Line(b"1234567\n")]
    assert buffer.feed(b"12345678") == []
    assert buffer.feed(b"9") == [Line(b"123456789", whole=False)]
    assert buffer.feed(b"PORT\nb\n") == [Line(b"PORT\n", whole=False), Line(b"b\n")]
    assert buffer.feed(b"12345678\n") == [Line(b"12345678\n", whole=False)]


def test_the_end_of_a_released_line_is_unread() -> None:
    buffer = LineBuffer()
    assert buffer.release() == b""
    assert buffer.feed(b"a\nPO") == [Line(b"a\n")]
    assert buffer.release() == b"PO"
    assert buffer.feed(b"RT") == [Line(b"RT", whole=False)]
    assert buffer.feed(b"\nb\n") == [Line(b"\n", whole=False), Line(b"b\n")]


@given(st.lists(text), st.integers(1, 12))
@example([b"abc", b"\n"], 3)
def test_pieces_do_not_matter(pieces: list[bytes], bound: int) -> None:
    """Every byte comes out once and in order; the whole lines are the lines of at most `bound` bytes."""
    buffer = LineBuffer(bound)
    lines = []
    for piece in pieces:
        lines += buffer.feed(piece)
        assert len(buffer.partial) <= bound
    data = b"".join(pieces)
    assert b"".join(line.data for line in lines) + buffer.partial == data
    ended = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    assert [line.data for line in lines if line.whole] == [one + b"\n" for one in ended if len(one) < bound]

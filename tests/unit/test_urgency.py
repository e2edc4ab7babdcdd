"""gateway.net.urgent.Marks: an urgent byte keeps its place through any edits and cuts."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from alg.api import Edit, apply_edits
from gateway.net.urgent import Marks

line = st.tuples(st.binary(max_size=6), st.binary(max_size=6), st.booleans())


class Recorder(socket.socket):
    """Takes what is sent, at most three bytes at a time, and notes which pieces it was offered."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.offered: list[tuple[int, int]] = []  # from where to where in what was sent

    def send(self, data: object, flags: int = 0) -> int:
        assert isinstance(data, bytes)
        self.offered.append((len(self.sent), len(self.sent) + len(data)))
        self.sent += data[:3]
        return min(3, len(data))


@given(st.lists(line, max_size=8))
def test_places(lines: list[tuple[bytes, bytes, bool]]) -> None:
    """Lines of text, edited in the middle; behind some of them an urgent byte, which is delivered by itself."""
    marks, out, wanted = Marks(), b"", list[int]()
    for data, replacement, urgent in lines:
        marks.came(len(data), False)
        if urgent:
            marks.came(1, True)
        edits = (Edit(len(data) // 3, len(data) // 2, replacement, "test"),)
        edited = apply_edits(data, edits)
        marks.delivered(data, edits, len(edited))
        out += edited
        if urgent:
            wanted.append(len(out))
            marks.delivered(b"!", (), 1)
            out += b"!"
        assert marks.held == 0
    expected = out
    with Recorder() as sock:
        while out:
            out = out[marks.send(sock, out) :]
        assert sock.sent == expected
        # Each urgent byte goes by itself, as MSG_OOB needs it, and nothing is offered across its place.
        assert {(place, place + 1) for place in wanted} <= set(sock.offered)
        assert not any(start < place < end for place in wanted for start, end in sock.offered)

"""The lines of flows: by the short way they are the same; together, in order and whole."""

from __future__ import annotations

import io
import re
import select
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.config.schema import LogSection
from gateway.flow.table import Flow
from gateway.observe.batch import BatchSink
from gateway.observe.flow_log import FlowLog, NoFlowLog, QuickFlowLog
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.sinks import StreamSink

CLIENT, SERVER = Endpoint("192.0.2.1", 5), Endpoint("2001:db8::1", 443)


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def both_lines(log: FlowLog, flow: Flow, reason: str) -> None:
    log.opened(flow)
    log.ended(flow, reason, 3, 1 << 40, 0.25)


@given(st.none() | st.text(), st.none() | st.text(), st.text(), st.text(min_size=1))
def test_both_ways_give_the_same_lines(target: str | None, user: str | None, rule: str, reason: str) -> None:
    flow = Flow("w0-1", "socks", CLIENT, SERVER, user)
    flow.target, flow.rule = target, rule
    said = []
    for plain in (True, False):
        stream = io.StringIO(newline="")
        structlog.reset_defaults()
        quick = setup_logging("worker-0", LogSection().settings, stream)
        assert isinstance(quick, QuickFlowLog)
        both_lines(FlowLog() if plain else quick, flow, reason)
        said.append(re.sub(r"timestamp=\S+Z", "", stream.getvalue()))
    assert said[0] == said[1]
    assert said[0].count("event=flow.open flow=w0-1") == 1


@pytest.mark.parametrize("form", ["json", "console"])
def test_other_forms_have_them_too(form: str) -> None:
    stream = io.StringIO()
    section = LogSection(format="json" if form == "json" else "console")
    both_lines(setup_logging("worker-0", section.settings, stream), Flow("w0-1", "socks", CLIENT, SERVER, None), "eof")
    assert len(stream.getvalue().splitlines()) == 2


def test_a_log_without_connections() -> None:
    stream = io.StringIO()
    log = setup_logging("worker-0", LogSection(connections=False).settings, stream)
    assert isinstance(log, NoFlowLog)
    both_lines(log, Flow("w0-1", "socks", CLIENT, SERVER, None), "eof")
    get_logger().info("ready")
    assert "event=ready" in stream.getvalue()
    assert "flow." not in stream.getvalue()


class Pieces(io.StringIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_lines_of_a_turn_are_written_together_in_pieces_that_a_pipe_keeps_whole() -> None:
    stream, due = Pieces(), list[Callable[[], None]]()
    sink = BatchSink(StreamSink(stream), due.append)
    lines = [f"{n} " + "x" * 300 for n in range(30)]
    for line in lines:
        sink.write(line, "info", {})
    assert stream.pieces == []
    assert len(due) == 1
    due.pop()()
    assert stream.getvalue().splitlines() == lines
    assert len(stream.pieces) == 3
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith("\n") for piece in stream.pieces)


def test_a_warning_does_not_wait_and_nobody_overtakes() -> None:
    stream, due = Pieces(), list[Callable[[], None]]()
    sink = BatchSink(StreamSink(stream), due.append)
    sink.write("first", "info", {})
    sink.write("second", "error", {})
    assert stream.getvalue() == "first\nsecond\n"
    sink.write("third", "info", {})
    for flush in due:
        flush()
    assert stream.getvalue() == "first\nsecond\nthird\n"

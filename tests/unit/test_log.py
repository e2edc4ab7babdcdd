"""The log's three classes, formats and targets, with real unix sockets."""

from __future__ import annotations

import io
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog

from alg.address import Endpoint
from gateway.config.schema import LogSection
from gateway.flow.table import Flow
from gateway.observe.counters import counts
from gateway.observe.events import EVENTS
from gateway.observe.log import KINDS, get_logger, setup_logging
from gateway.observe.sinks import JournaldSink, StreamSink, SyslogSink


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(section: LogSection) -> list[str]:
    stream = io.StringIO()
    structlog.reset_defaults()
    setup_logging("worker-0", section.settings, stream)
    log = get_logger()
    log.info("flow.end", flow="w0-1", client="192.0.2.1:5", up=3)
    log.warning("auth.failed", client="192.0.2.1:5", address="192.0.2.1", user='a "b"\nevent=flow.end')
    log.error("accept.exhausted", reason="Too many open files")
    log.info("ready")
    return stream.getvalue().splitlines()


def test_logfmt_has_its_class_and_its_order_and_one_line_an_event() -> None:
    end, failed, exhausted, ready = lines(LogSection())
    assert re.fullmatch(
        r"timestamp=\S+Z level=info process=worker-0 event=flow.end flow=w0-1 client=192.0.2.1:5 up=3 class=connection",
        end,
    )
    assert " event=auth.failed address=192.0.2.1 client=" in failed
    assert failed.endswith(r'user="a \"b\"\nevent=flow.end" class=denied')
    assert exhausted.endswith('reason="Too many open files" class=resource')
    assert "class=" not in ready


def test_a_service_has_the_severity_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w+") as stream:
        status = os.fstat(stream.fileno())
        for named, expected in (
            (f"{status.st_dev}:{status.st_ino}", ["<6>timestamp", "<4>timestamp", "<3>timestamp"]),
            (f"{status.st_dev}:{status.st_ino + 1}", ["timestamp"] * 3),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", named)
            stream.truncate(0)
            stream.seek(0)
            waiting: list[Callable[[], None]] = []
            flows = setup_logging("worker-0", LogSection().settings, stream, later=waiting.append)
            flows.opened(Flow("w0-1", "socks", Endpoint("192.0.2.1", 5), Endpoint("192.0.2.2", 80), None))
            get_logger().warning("auth.failed")
            get_logger().error("accept.exhausted")
            assert [line.partition("=")[0] for line in (tmp_path / "stderr").read_text().splitlines()] == expected


@pytest.mark.parametrize(("level", "events"), [("info", 4), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_counted_only(level: Literal["info", "warning", "error"], events: int) -> None:
    before = counts["algate_log_events_total", "ready"]
    said = lines(LogSection(level=level))
    assert len(said) == events
    assert "level=error" in said[-1 if level != "info" else 2]
    assert counts["algate_log_events_total", "ready"] == before + 1


def test_json() -> None:
    end, failed, *_ = map(json.loads, lines(LogSection(format="json")))
    assert end["class"] == "connection"
    assert end["up"] == 3
    assert failed["user"] == 'a "b"\nevent=flow.end'


def test_what_a_stranger_sent_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    setup_logging("worker-0", LogSection(format="console").settings, stream)
    get_logger().info("socks.failed", target="\x1b[2J\nmine.example")
    assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_the_console_format_is_for_the_eye() -> None:
    assert "auth.failed" in lines(LogSection(format="console"))[1]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        daemon.settimeout(5)
        yield daemon


def test_syslog(daemon: socket.socket) -> None:
    sink = SyslogSink("algate-worker-0", StreamSink(io.StringIO()), daemon.getsockname())
    sink.write("event=auth.failed", "warning", {})
    assert re.fullmatch(
        rb"<28>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d algate-worker-0\[\d+\]: event=auth.failed", daemon.recv(1000)
    )


def test_journald(daemon: socket.socket) -> None:
    sink = JournaldSink("algate", StreamSink(io.StringIO()), daemon.getsockname())
    sink.write("event=flow.end", "error", {"client": "192.0.2.1:5", "reason": "two\nlines"})
    assert daemon.recv(1000) == (
        b"MESSAGE=event=flow.end\nPRIORITY=3\nSYSLOG_IDENTIFIER=algate\nALGATE_CLIENT=192.0.2.1:5\n"
        b"ALGATE_REASON\n" + (9).to_bytes(8, "little") + b"two\nlines\n"
    )


def test_what_the_daemon_does_not_take_is_not_lost_and_nobody_waits(daemon: socket.socket, tmp_path: Path) -> None:
    stream = io.StringIO()
    full = SyslogSink("algate", StreamSink(stream), daemon.getsockname())
    for number in range(2000):  # nobody reads
        full.write(f"line {number}", "info", {})
    SyslogSink("algate", StreamSink(stream), str(tmp_path / "nowhere")).write("the last", "info", {})
    found = stream.getvalue().splitlines()
    assert found[-2:] == ["line 1999", "the last"]


def test_every_event_with_a_class_is_documented() -> None:
    """That the documented ones are logged, and the other way round: test_reference.py"""
    assert {event for events in KINDS.values() for event in events} <= EVENTS.keys()

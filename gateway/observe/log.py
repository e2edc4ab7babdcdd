"""Logging: one line for each event, with a stable name ("pinhole.open"), to stderr, syslog or journald.

Three kinds of lines that administrators of a SOCKS server look for carry `class`: "denied" (access was refused),
"connection" (a connection began or ended), "resource" (something ran out or broke).
"""

from __future__ import annotations

import atexit
import sys
import time
from typing import Any, Literal, TextIO

import msgspec
import structlog

from alg.address import Endpoint
from gateway.observe.batch import BatchSink, Later
from gateway.observe.counters import tally
from gateway.observe.flood import Flood
from gateway.observe.flow_log import FlowLog, NoFlowLog, QuickFlowLog
from gateway.observe.logfmt import Logfmt, Stamp
from gateway.observe.pinhole_log import PINHOLES
from gateway.observe.sinks import (
    JournaldSink,
    JournalPrefixSink,
    Sink,
    StreamSink,
    SyslogServerSink,
    SyslogSink,
    is_journal,
)

KINDS = {
    "denied": (
        "auth.ban",
        "auth.banned",
        "auth.failed",
        "auth.no_method",
        "auth.protection",
        "bind.denied",
        "flow.denied",
        "pinhole.stranger",
        "quota.used_up",
        "rule.deny",
        "socks.denied",
        "socks.udp_stranger",
        "transparent.loop",
    ),
    "connection": ("flow.open", "flow.end"),
    "resource": (
        "accept.exhausted",
        "accept.failed",
        "auth.overloaded",
        "broker.lost",
        "drain.cut",
        "file.rejected",
        "listen.absent",
        "log.lost",
        "pinhole.refused",
        "process.died",
        "process.hung",
        "process.killed",
        "process.slow",
        "reload.failed",
        "socks.timeout",
        "start.failed",
        "supervisor.gone",
        "upgrade.failed",
    ),
}


class LogSettings(msgspec.Struct, frozen=True):
    """Where the log lines of a process go, and in which format: the table [log].

    `syslog` is the path of the local daemon's socket, or the endpoint of a server (RFC 5424 over UDP); it is used for
    the target "syslog" only. `connections`: whether the beginning and the end of flows are logged. `level`: events
    below it are counted, but not written.
    """

    target: Literal["stderr", "syslog", "journald"] = "stderr"
    syslog: str | Endpoint = "/dev/log"
    format: Literal["logfmt", "json", "console"] = "logfmt"
    connections: bool = True
    level: Literal["debug", "info", "warning", "error"] = "debug"


_processors: list[structlog.typing.Processor] = []  # one list for all loggers, so that it can change
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_KIND_OF = {event: kind for kind, events in KINDS.items() for event in events}
# What reads the log by a regular expression relies on this order (docs/how-to/socks-authentication.md).
KEY_ORDER = ("timestamp", "level", "process", "event", "address")


def setup_logging(
    process: str, settings: LogSettings | None = None, stream: TextIO | None = None, later: Later | None = None
) -> FlowLog:
    """Configure the log of this process; every line carries `process` ("supervisor", "broker", "worker-0"). May be
    called again: loggers in use change too. Returns the object that writes the lines of flows. `later`: a function of
    the event loop, see BatchSink."""
    settings = settings or LogSettings()
    stream = stream or sys.stderr
    render = _renderer(settings, stream)

    least = _LEVELS[settings.level]

    def is_wanted(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if _LEVELS.get(method, 3) < least:
            raise structlog.DropEvent
        return event

    flood = Flood()

    def leave_out(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        left_out = flood.take(str(event.get("event")), time.monotonic())
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["left_out"] = left_out
        return event

    def name_process(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        kind = _KIND_OF.get(str(event.get("event")))
        if kind is not None:
            event["class"] = kind
        return event

    def hand_over(
        logger: Any, method: str, event: structlog.typing.EventDict
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        fields = dict(event)
        return (str(render(logger, method, event)), method, fields), {}

    before: list[structlog.typing.Processor] = [
        tally,
        is_wanted,
        leave_out,
        name_process,
        structlog.processors.add_log_level,
        Stamp(),
        structlog.processors.format_exc_info,
    ]

    def lost_line(count: int) -> str:
        event: structlog.typing.EventDict = {"event": "log.lost", "lines": count}
        for processor in before:
            if processor is not is_wanted:
                processor(None, "warning", event)
        return str(render(None, "warning", event))

    plain: Sink = StreamSink(stream, lost_line)
    if later is not None:
        plain = batch = BatchSink(plain, later)
        atexit.register(batch.flush)
    if is_journal(stream):
        plain = JournalPrefixSink(plain)
    sink = _sink(settings, process, plain)
    _processors[:] = [*before, hand_over]
    _Logger.sink = sink
    structlog.configure(
        processors=_processors,
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=True,
    )
    # What is written past structlog is of the level "info".
    quick = settings.target == "stderr" and settings.format == "logfmt" and least <= _LEVELS["info"]
    PINHOLES.configure(process, sink if quick else None)
    if not settings.connections:
        return NoFlowLog()
    return QuickFlowLog(process, sink) if quick else FlowLog()


def get_logger() -> Any:
    """Return the logger: `log.info("flow.open", flow=..., client=...)`."""
    return structlog.get_logger()


class _Logger:
    """The logger that structlog calls last: each method passes a line to the current sink."""

    sink: Sink

    def msg(self, line: str, level: str, fields: dict[str, Any]) -> None:
        self.sink.write(line, level, fields)

    debug = info = warning = error = critical = exception = msg


def _renderer(settings: LogSettings, stream: TextIO) -> structlog.typing.Processor:
    match settings.format:
        case "json":
            return structlog.processors.JSONRenderer(default=str)
        case "console":
            return structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
        case _:
            return Logfmt(KEY_ORDER)


def _sink(settings: LogSettings, process: str, plain: Sink) -> Sink:
    """Make the sink. A sink that cannot be reached passes its lines to the plain one."""
    match settings.target:
        case "syslog":
            if isinstance(settings.syslog, str):
                return SyslogSink(f"algate-{process}", plain, settings.syslog)
            return SyslogServerSink(settings.syslog, plain)
        case "journald":
            return JournaldSink("algate", plain)
        case _:
            return plain

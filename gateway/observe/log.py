"""Logging: structlog to stderr, one line an event. An event's name is stable ("pinhole.open")."""

from __future__ import annotations

import sys
from typing import Any

import structlog


def setup_logging(process: str) -> None:
    """Configure this process's log; every line carries `process` ("supervisor", "broker", "worker-0")."""

    def name_process(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    structlog.configure(
        processors=[
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "process", "event"], bool_as_flag=False
            ),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger() -> Any:
    """The logger: `log.info("flow.open", flow=..., client=...)`."""
    return structlog.get_logger()

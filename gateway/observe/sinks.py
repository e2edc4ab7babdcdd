"""Sinks for log lines: a stream, syslog or journald. A sink never blocks and never raises."""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TextIO

from alg.address import Endpoint

SYSLOG_PATH = "/dev/log"
JOURNALD_PATH = "/run/systemd/journal/socket"
_DAEMON = 3 << 3  # the facility (RFC 3164 section 4.1.1)
_SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}


class Sink(Protocol):
    """A function that takes a rendered line, its level, and its fields."""

    def write(self, line: str, level: str, fields: Mapping[str, Any]) -> None: ...


class StreamSink:
    """Writes lines to a stream such as stderr, each by one write. Lines that a full disk does not accept are counted.

    `lost_line` makes the line that says how many are missing; it is written before the first line that succeeds again.
    """

    def __init__(self, stream: TextIO, lost_line: Callable[[int], str] | None = None) -> None:
        self._put = _writer(stream)
        self._lost_line = lost_line
        self._lost = 0
        self._rest = b""  # of a line that was written in part

    def write(self, line: str, level: str, fields: Mapping[str, Any]) -> None:
        data = _bytes(f"{line}\n")
        if self._lost and self._lost_line is not None:
            data = f"{self._lost_line(self._lost)}\n".encode() + data
        data = self._rest + data
        try:
            written = self._put(data)
        except (OSError, ValueError):
            self._lost += 1 + line.count("\n")  # several may be written together
            return
        self._lost = 0
        self._rest = data[written:]


class JournalPrefixSink:
    """Puts the severity before each line, as journald reads it from a service's stderr: "<4>" (sd-daemon(3))."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, line: str, level: str, fields: Mapping[str, Any]) -> None:
        self._sink.write(f"<{_SEVERITIES.get(level, 6)}>{line}", level, fields)


def is_journal(stream: TextIO) -> bool:
    """Whether systemd has connected the stream with the journal (JOURNAL_STREAM, systemd.exec(5))."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def said_to(stream: TextIO) -> str:
    """Return the prefix of an error message on this stream: its severity where the journal reads it, otherwise ""."""
    return f"<{_SEVERITIES['error']}>" if is_journal(stream) else ""


def _writer(stream: TextIO) -> Callable[[bytes], int]:
    """Return a function that writes bytes to the stream, bypassing its buffer, which tears lines on a full disk. It
    returns how many bytes were written."""
    try:
        fd = stream.fileno()
    except (OSError, ValueError):  # one in memory
        return lambda data: stream.write(data.decode())
    return partial(os.write, fd)


class _DatagramSink(ABC):
    """A datagram socket; a unix one if the address is a path. A line that it does not accept goes to `fallback`."""

    def __init__(self, address: str | tuple[str, int], fallback: Sink, family: int = socket.AF_UNIX) -> None:
        self._address = address
        self._fallback = fallback
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def write(self, line: str, level: str, fields: Mapping[str, Any]) -> None:
        try:
            self._socket.sendto(self._encode(line, level, fields), self._address)
        except OSError:
            self._fallback.write(line, level, fields)

    @abstractmethod
    def _encode(self, line: str, level: str, fields: Mapping[str, Any]) -> bytes: ...


class SyslogSink(_DatagramSink):
    """The local syslog daemon, in the format of syslog(3), with facility "daemon". `tag` is the program's name."""

    def __init__(self, tag: str, fallback: Sink, path: str = SYSLOG_PATH) -> None:
        super().__init__(path, fallback)
        self._tag = f"{tag}[{os.getpid()}]"

    def _encode(self, line: str, level: str, fields: Mapping[str, Any]) -> bytes:
        priority = _DAEMON | _SEVERITIES.get(level, 6)
        return _bytes(f"<{priority}>{time.strftime('%b %e %H:%M:%S')} {self._tag}: {line}")


class SyslogServerSink(_DatagramSink):
    """A syslog server, by UDP (RFC 5426) in the format of RFC 5424. The name of the event is the message id."""

    def __init__(self, server: Endpoint, fallback: Sink) -> None:
        family = socket.AF_INET6 if server.version == 6 else socket.AF_INET
        super().__init__((server.host, server.port), fallback, family)
        self._host = _printable(socket.gethostname(), 255)

    def _encode(self, line: str, level: str, fields: Mapping[str, Any]) -> bytes:
        priority = _DAEMON | _SEVERITIES.get(level, 6)
        event = _printable(str(fields.get("event", "")), 32)
        stamp = fields.get("timestamp", "-")
        return _bytes(f"<{priority}>1 {stamp} {self._host} algate {os.getpid()} {event} - {line}")


def _bytes(text: str) -> bytes:
    """Encode text in UTF-8. Text that cannot be encoded (as in the name of a file) does not stop a line."""
    return text.encode(errors="backslashreplace")


def _printable(text: str, longest: int) -> str:
    """Format a field of the header (RFC 5424 section 6.2): printable ASCII without blanks, "-" if it is empty."""
    return "".join(char for char in text if "!" <= char <= "~")[:longest] or "-"


class JournaldSink(_DatagramSink):
    """systemd-journald by its native protocol. Every field of the event becomes a field of the entry, such as
    ALGATE_CLIENT."""

    def __init__(self, identifier: str, fallback: Sink, path: str = JOURNALD_PATH) -> None:
        super().__init__(path, fallback)
        self._identifier = identifier

    def _encode(self, line: str, level: str, fields: Mapping[str, Any]) -> bytes:
        entry = {"MESSAGE": line, "PRIORITY": str(_SEVERITIES.get(level, 6)), "SYSLOG_IDENTIFIER": self._identifier}
        entry |= {f"ALGATE_{key.upper()}": str(value) for key, value in fields.items() if key.isidentifier()}
        return b"".join(_field(key, _bytes(value)) for key, value in entry.items())


def _field(key: str, value: bytes) -> bytes:
    """Encode a field; with its length if it has more than one line (systemd's "Native Journal Protocol")."""
    if b"\n" in value:
        return key.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return key.encode() + b"=" + value + b"\n"

"""What a real rsyslogd and a real systemd-journald make of our lines."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from gateway.config.schema import LogSection
from gateway.observe.log import get_logger, setup_logging
from gateway.observe.sinks import JournaldSink, StreamSink, SyslogSink
from tests.lab.peers import LIBRARIES, MULTIARCH, PEERS, unpacked
from tests.net.broker_rig import wait_for

JOURNALD = Path("/lib/systemd/systemd-journald")
USER = 'ann "x"\nevent=flow.end class=connection é'  # what an attacker would call himself


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@contextmanager
def running(argv: list[str | Path], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, env={**os.environ, **(env or {})}) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def log_a_failure(section: LogSection) -> str:
    """Log what a worker logs of a wrong password; what went to standard error."""
    stream = io.StringIO()
    structlog.reset_defaults()
    setup_logging("worker-0", section.settings, stream)
    get_logger().warning("auth.failed", address="192.0.2.1", client="192.0.2.1:5", user=USER)
    return stream.getvalue()


@pytest.fixture
def rsyslog(tmp_path: Path) -> Iterator[tuple[Path, int, Path]]:
    """A socket, a UDP port, and the file with what has come, a JSON document a line."""
    daemon = unpacked("rsyslog", "usr/sbin/rsyslogd")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, out = tmp_path / "rsyslog.conf", tmp_path / "out"
    config.write_text(
        'module(load="imuxsock" SysSock.Use="off")\nmodule(load="imudp")\n'
        f'input(type="imuxsock" Socket="{tmp_path}/log")\ninput(type="imudp" address="127.0.0.1" port="{port}")\n'
        'template(name="all" type="list") { property(name="jsonmesg") constant(value="\\n") }\n'
        f'action(type="omfile" file="{out}" template="all")\n'
    )
    argv: list[str | Path] = [daemon, "-n", "-f", config, "-i", tmp_path / "pid", "-M", LIBRARIES / "rsyslog"]
    with running(argv, {"LD_LIBRARY_PATH": f"{LIBRARIES}:{PEERS}/lib/{MULTIARCH}"}):
        wait_for((tmp_path / "log").exists, "rsyslogd's socket")
        yield tmp_path / "log", port, out


def test_rsyslog_by_its_socket(rsyslog: tuple[Path, int, Path]) -> None:
    path, _, out = rsyslog
    assert log_a_failure(LogSection(target="syslog", syslog=str(path))) == ""
    wait_for(lambda: out.exists() and out.read_text(), "the message")
    (message,) = map(json.loads, out.read_text().splitlines())
    assert message["programname"] == "algate-worker-0"
    assert message["procid"] == str(os.getpid())
    assert (message["syslogfacility"], message["syslogseverity"]) == ("3", "4")
    assert "event=auth.failed address=192.0.2.1 client=192.0.2.1:5" in message["msg"]
    assert r'user="ann \"x\"\nevent=flow.end class=connection ' in message["msg"]


def test_a_syslog_server_by_rfc_5424(rsyslog: tuple[Path, int, Path]) -> None:
    _, port, out = rsyslog
    section = LogSection(target="syslog", syslog=f"127.0.0.1:{port}", format="json")

    def has_come() -> bool:  # the first may come before it listens
        assert log_a_failure(section) == "" or not out.exists()
        return out.exists() and bool(out.read_text())

    wait_for(has_come, "a message")
    message = json.loads(out.read_text().splitlines()[0])
    assert message["protocol-version"] == "1"
    assert (message["app-name"], message["msgid"]) == ("algate", "auth.failed")
    assert message["hostname"] == socket.gethostname()
    assert message["procid"] == str(os.getpid())
    fields = json.loads(message["msg"])
    assert fields["user"] == USER
    assert fields["timestamp"] == message["timereported"]


@pytest.fixture
def journald() -> Iterator[Path]:
    """The root of a namespace in which journald runs, with a /run of its own."""
    if not JOURNALD.exists():
        pytest.skip("systemd is not installed")
    script = f"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log && exec {JOURNALD}"
    with running(["unshare", "-m", "sh", "-c", script]) as process:
        root = Path(f"/proc/{process.pid}/root")
        wait_for((root / "run/systemd/journal/socket").exists, "journald's socket")
        yield root


def journal(root: Path, *match: str) -> list[dict[str, str]]:
    argv = ["journalctl", "--directory", str(root / "run/log/journal"), "-o", "json", "--no-pager", "-q", *match]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="journalctl is not installed")
def test_journald_has_every_key_as_a_field(journald: Path) -> None:
    stream = io.StringIO()
    sink = JournaldSink("algate", StreamSink(stream), str(journald / "run/systemd/journal/socket"))
    fields = {"event": "auth.failed", "client": "192.0.2.1:5", "user": USER, "failures": 3, "class": "denied"}
    sink.write("event=auth.failed ...", "warning", fields)
    local = SyslogSink("algate-worker-0", StreamSink(stream), str(journald / "run/systemd/journal/dev-log"))
    local.write("event=flow.end", "info", {})
    assert stream.getvalue() == ""
    wait_for(lambda: journal(journald, "ALGATE_EVENT=auth.failed"), "the entry")
    (entry,) = journal(journald, "ALGATE_EVENT=auth.failed", "ALGATE_CLASS=denied")
    assert entry["ALGATE_USER"] == USER
    assert entry["ALGATE_FAILURES"] == "3"
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("algate", "4")
    assert entry["_PID"] == str(os.getpid()), "which journald knows of the kernel, not of us"
    assert not journal(journald, "ALGATE_EVENT=flow.end"), "no field is made by what a client says"
    wait_for(lambda: journal(journald, "SYSLOG_IDENTIFIER=algate-worker-0"), "the other entry")
    (entry,) = journal(journald, "SYSLOG_IDENTIFIER=algate-worker-0")
    assert entry["MESSAGE"] == "event=flow.end"

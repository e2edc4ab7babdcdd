"""What a confined process (gateway/process/confine.py) does for the first time long after its start, when the filter of
system calls holds: another log target, a log daemon that goes and comes back, a name server over TCP."""

from __future__ import annotations

import os
import signal
import socket
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab
from tests.net.socks_wire import GREETING, receive

NAME, PORT = "many.example", 7070
PROCESSES = ("supervisor", "broker", "packets", "console", "worker-0", "worker-1")


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.dns({NAME: [*(f"198.51.100.{number}" for number in range(1, 200)), SERVER4]})
    lab.tmp.chmod(0o755)
    gateway = lab.start_gateway(lab.write_config(console={"listen": "127.0.0.1:9180"}))
    yield gateway
    assert not [line for line in gateway.log_lines() if "process.died" in line or "process.hung" in line]
    assert gateway.stop() == 0


class Daemon:
    """A syslog daemon: a socket, and all that came there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin()

    def begin(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self.path.chmod(0o777)
        self._sock.setblocking(False)

    def end(self) -> None:
        self._sock.close()
        self.path.unlink()

    def heard(self, processes: Sequence[str]) -> set[str]:
        """Which of these processes have said their status since the last call."""
        found: set[str] = set()
        while True:
            try:
                line = self._sock.recv(65536).decode()
            except BlockingIOError:
                return found
            found |= {process for process in processes if process in line and "event=status" in line}


def reload(gateway: Gateway, **sections: Any) -> None:
    document = {**tomllib.loads(gateway.config.read_text()), **sections}
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.reload()


def test_a_log_daemon_that_goes_and_comes_back(lab: Lab, gateway: Gateway) -> None:
    daemon = Daemon(lab.tmp / "log.sock")

    def speak_on_stderr() -> None:
        lines = len(gateway.log_lines())
        os.kill(gateway.process.pid, signal.SIGUSR1)
        for process in PROCESSES:
            gateway.wait_for_log(f"process={process} event=status", after=lines)

    reload(gateway, log={"target": "syslog", "syslog": str(daemon.path)})
    for comes_back in (True, False):
        missing = set(PROCESSES)
        os.kill(gateway.process.pid, signal.SIGUSR1)
        while missing:
            missing -= lab.wait_for(lambda: daemon.heard(PROCESSES), 5, f"{missing} at the daemon")
        daemon.end()
        speak_on_stderr()
        if comes_back:
            daemon.begin()
    reload(gateway, log={"target": "journald"})  # there is none in the lab
    speak_on_stderr()
    reload(gateway, log={"target": "syslog", "syslog": "127.0.0.1:5140"})
    reload(gateway, log={})
    speak_on_stderr()


def test_a_name_whose_answer_is_too_long_for_a_datagram(lab: Lab, gateway: Gateway) -> None:
    with lab.listen("outside", SERVER4, PORT):
        sock = lab.connect("inside", ROUTER_IN4, 1080, timeout=20)
        with sock:
            sock.sendall(GREETING)
            assert receive(sock, 2) == b"\5\0"
            sock.sendall(b"\5\1\0\3" + bytes([len(NAME)]) + NAME.encode() + PORT.to_bytes(2))
            assert receive(sock, 2)[1] != 4, "the name was not resolved"
    gateway.wait_for_log(f"target={NAME}")

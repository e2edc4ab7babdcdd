"""An FTP control connection by hand: for tests that must say exactly which bytes go when."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from typing import Any

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, SERVER4, Lab, Role
from tests.lab.servers import FtpServer


def port_command(host: str, port: int) -> bytes:
    """The PORT line for an endpoint (RFC 959)."""
    return f"PORT {host.replace('.', ',')},{port >> 8},{port & 255}\r\n".encode()


class Control:
    """A connection to a server's control port, from a role of the lab."""

    def __init__(self, lab: Lab, host: str, port: int = 21, role: Role = "inside") -> None:
        self.socket = lab.connect(role, host, port, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def dribble(self, data: bytes) -> None:
        """Send byte by byte; each is on its way before the next is written."""
        for i in range(len(data)):
            self.socket.sendall(data[i : i + 1])
            while _unsent(self.socket):
                time.sleep(0.001)

    def reply(self) -> str:
        """The next reply's last line (RFC 959 4.2). ConnectionError at the end of the stream."""
        while True:
            line = self.line()
            if len(line) > 3 and line[:3].isdigit() and line[3] == " ":
                return line

    def line(self) -> str:
        while b"\n" not in self._buffer:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionError(f"end of stream after {self._buffer!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode().rstrip("\r")

    def command(self, line: str) -> str:
        """Send a command, and wait for its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def login(self, user: str, password: str) -> None:
        assert self.reply().startswith("220")
        assert self.command(f"USER {user}").startswith(("331", "230"))
        assert self.command(f"PASS {password}").startswith("230")
        assert self.command("TYPE I").startswith("200")

    def close(self) -> None:
        self.socket.close()


def session(lab: Lab, server: FtpServer) -> Control:
    """A session of an unconfigured client, logged in."""
    control = Control(lab, SERVER4)
    control.login(server.user, server.password)
    return control


def _unsent(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


def split(public: str) -> tuple[str, int]:
    """Host and port of an endpoint's text."""
    host, _, port = public.rpartition(":")
    return host.strip("[]"), int(port)


def fails(lab: Lab, role: Role, endpoint: tuple[str, int]) -> bool:
    """Whether a connection attempt comes to nothing."""
    try:
        lab.connect(role, *endpoint, timeout=1).close()
    except OSError:
        return True
    return False


def open_pinhole(
    lab: Lab, gateway: Gateway, control: Control, version: int = 4
) -> tuple[socket.socket, dict[str, Any]]:
    """Announce a listener of the client; the listener, and the pinhole as `algate pinholes` shows it."""
    listener = lab.listen("inside", CLIENT4 if version == 4 else CLIENT6)
    port = listener.getsockname()[1]
    if version == 4:
        control.send(port_command(CLIENT4, port))
    else:
        control.send(f"EPRT |2|{CLIENT6}|{port}|\r\n".encode())
    assert control.reply().startswith("200")
    (pinhole,) = [row for row in gateway.admin("pinholes") if split(row["target"])[1] == port]
    return listener, pinhole

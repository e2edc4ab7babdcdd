"""An FTP session in which the test itself is both ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab, Role
from tests.net.ftp_control import Control
from tests.net.socks_wire import ask5

PORT = 2121  # of `alg.ftp.ports` in tests that use this


@dataclass
class Script:
    """A client's control connection and the server's end of it."""

    client: Control
    server: socket.socket

    def expect(self, data: bytes) -> None:
        """The server gets exactly these bytes next."""
        got = b""
        while len(got) < len(data):
            more = self.server.recv(len(data) - len(got))
            assert more, f"end of stream after {got!r}"
            got += more
        assert got == data

    def line(self) -> bytes:
        """The next line that the server gets."""
        got = b""
        while not got.endswith(b"\n"):
            more = self.server.recv(1)
            assert more, f"end of stream after {got!r}"
            got += more
        return got

    def command(self, line: bytes, reply: bytes) -> str:
        """A command, passed on as it is, and its reply; what the client got as the reply."""
        self.client.send(line)
        self.expect(line)
        self.server.sendall(reply)
        return self.client.reply()


@contextlib.contextmanager
def script(
    lab: Lab,
    gateway: Gateway,
    role: Role = "inside",
    host: str = SERVER4,
    greet: bool = True,
    settle: bool = True,
    socks: bool = False,
) -> Iterator[Script]:
    """A session, greeted and logged in (`greet`). At the end its flow is waited for, and its pinholes (`settle`).
    `socks`: the client asks for it by SOCKS."""
    listener = lab.listen("outside", host, PORT)
    client = Control(lab, ROUTER_IN4, 1080, role) if socks else Control(lab, host, PORT, role)
    if socks:
        assert ask5(client.socket, host, PORT)[0] == 0
    server, _ = listener.accept()
    server.settimeout(10)
    listener.close()
    session = Script(client, server)
    try:
        if greet:
            server.sendall(b"220 ready\r\n")
            assert client.reply() == "220 ready"
            assert session.command(b"USER ann\r\n", b"230 in\r\n") == "230 in"
        yield session
    finally:
        client.close()
        server.close()
    if settle:
        lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the flow to end")
        assert gateway.admin("pinholes") == []

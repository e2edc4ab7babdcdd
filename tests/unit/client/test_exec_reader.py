"""What `algate exec` reads of a program's FTP, and what it says of it; and the ports that --publish understands."""

from __future__ import annotations

import socket
import threading

import pytest

from alg.address import Endpoint
from gateway.client.blocking import Address
from gateway.client.engine.publish import Published, parse_published
from gateway.client.engine.reader import Reader, module_for

PROGRAM, SERVER = Endpoint("10.0.2.100", 40000), Endpoint("203.0.113.10", 21)


class Waiting:
    """A proxy that waits for the server, to which nobody comes."""

    address: Address = ("198.51.100.1", 5000)

    def __init__(self) -> None:
        self._ends = socket.socketpair()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.close()

    def fileno(self) -> int:
        return self._ends[0].fileno()


def test_trace_says_each_edit_and_no_password() -> None:
    module = module_for("ftp", {}, PROGRAM, SERVER)
    said: list[str] = []
    reader = Reader(module, Waiting, lambda *_: pytest.fail("nobody has come"), said.append)  # type: ignore[arg-type]
    program, inner = socket.socketpair()
    outer, server = socket.socketpair()
    runs = threading.Thread(target=reader.run, args=(inner, outer))
    runs.start()
    for end in (program, server):
        end.settimeout(20)
    server.sendall(b"220 ready\r\n")
    assert program.recv(100) == b"220 ready\r\n"
    for sent, got, answer in (
        (b"USER ann\r\n", b"USER ann\r\n", b"331 password\r\n"),
        (b"PASS secret\r\n", b"PASS secret\r\n", b"230 in\r\n"),
        (b"PORT 10,0,2,100,200,10\r\n", b"PORT 198,51,100,1,19,136\r\n", b"200 good\r\n"),
    ):
        program.sendall(sent)
        assert server.recv(100) == got
        server.sendall(answer)
        assert program.recv(100) == answer
    program.close()
    server.close()
    runs.join(20)
    assert not runs.is_alive()
    assert said == ["ftp.port: '10,0,2,100,200,10' is '198,51,100,1,19,136' for the server"]


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("80", Published(80)),
        ("203.0.113.10:80", Published(80, "203.0.113.10")),
        ("[2001:db8::1]:80", Published(80, "2001:db8::1")),
        ("8080:80", Published(80, asked=8080)),
    ],
)
def test_ports_that_are_published(text: str, published: Published) -> None:
    assert parse_published(text) == published


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "80:", "0:80", "70000:80"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        parse_published(text)

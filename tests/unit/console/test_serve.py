"""The console's HTTP server: what a client sends keeps nobody waiting, and leaves no traceback in the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gevent
import gevent.socket as gsocket
import pytest

from gateway.console.serve import serve
from gateway.net.slices import slices

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

START = b"GET / HTTP/1.1\r\nHost: a\r\n"
REQUESTS = {
    "carriage returns": START + (b"a:" + b"\r" * 65_000 + b"\r\n") * 95 + b"\r\n",
    "folds": START + b"a: b\r\n" + (b" " * 65_000 + b"\r\n") * 95 + b"\r\n",
    "colons": START + (b":" * 65_000 + b"\r\n") * 95 + b"\r\n",
    "a field": START + b"a: " + b"b" * 60_000 + b"\r\n\r\n",
    "fields": START + b"a: b\r\n" * 101 + b"\r\n",
    "digits": START + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
}


@pytest.fixture
def port() -> Iterator[int]:
    def app(_environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    listener = gsocket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    number: int = listener.getsockname()[1]
    server = gevent.spawn(serve, listener, app, slices().wait)
    yield number
    server.kill()
    listener.close()


def ask(port: int, data: bytes) -> bytes:
    """The answer to a request, as far as it is taken."""
    with gevent.Timeout(20), gsocket.create_connection(("127.0.0.1", port)) as sock:
        sending = gevent.spawn(_send, sock, data)
        answer: bytes = sock.recv(4096)
        sending.kill()
        return answer


def _send(sock: gsocket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        pass  # it has heard enough


@pytest.mark.parametrize("shape", REQUESTS)
def test_a_head_keeps_nobody_waiting(port: int, shape: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Six megabytes in one field after the other were read in one go, which took the process 2.5 seconds."""
    longest = 0.0

    def look() -> None:
        nonlocal longest
        while True:
            began = time.process_time()
            gevent.sleep(0.001)
            longest = max(longest, time.process_time() - began)

    looking = gevent.spawn(look)
    try:
        assert ask(port, REQUESTS[shape]).startswith(b"HTTP/1.1 400 ")
        gevent.sleep(0.01)
    finally:
        looking.kill()
    assert longest < 0.03
    assert "Traceback" not in capfd.readouterr().err


def test_usual_heads_are_read(port: int) -> None:
    cookies = b"Cookie: " + b"a=b; " * 1500 + b"\r\n"
    for head in (START + b"\r\n", START + cookies + b"\r\n", START + b"A: b\r\n" * 60 + b"\r\n"):
        assert ask(port, head).startswith(b"HTTP/1.1 200 ")

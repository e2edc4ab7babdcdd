"""HTTP for the console: gevent's server, with limits on times and numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket as gsocket
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from gateway.observe.log import get_logger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = get_logger()

MOST_CONNECTIONS = 64
REQUEST = 10.0  # seconds from the first byte of a request to its last
RESPONSE = 60.0  # seconds for an answer, with what is left of the request
IDLE = 60.0  # seconds that a connection may wait for its next request
STALLED = 15.0  # seconds that a client may take to read
LONGEST_HEAD = 16384  # bytes of the fields of a request: what reads them does so in one go
READ_SIZE = 1024  # bytes that are read at a time: some of them cost a microsecond each


class _InTurns(io.RawIOBase):
    """Reads a client's bytes, a few in each round of the event loop, so that a client that sends without end delays no
    other."""

    def __init__(self, sock: gsocket.socket, give_way: Callable[[], None]) -> None:
        self._sock = sock
        self._give_way = give_way

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._sock.recv_into(buffer)
        self._give_way()
        return count


class _Head(io.BufferedIOBase):
    """The fields of a request. Raises ValueError where they are too long."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._left = LONGEST_HEAD

    def readline(self, size: int | None = -1) -> bytes:
        left = self._left + 1
        line = self._file.readline(left if size is None or size < 0 else min(size, left))
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"more than {LONGEST_HEAD} bytes of fields")
        return line


class _Server(WSGIServer):
    give_way: Callable[[], None]


class _Handler(WSGIHandler):
    def __init__(self, sock: gsocket.socket, address: Any, server: _Server) -> None:
        sock.settimeout(STALLED)
        super().__init__(sock, address, server)
        self.rfile = io.BufferedReader(_InTurns(sock, server.give_way), READ_SIZE)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # it has gone, which is no news

    def MessageClass(self, *_arguments: Any) -> Any:
        """Read the fields. Raises ValueError, which the server answers with 400, and without a traceback."""
        try:
            return super().MessageClass(_Head(self.rfile))
        except HTTPException as error:
            raise ValueError(str(error)) from None

    def handle_one_response(self) -> None:
        _within(RESPONSE, super().handle_one_response)

    def read_requestline(self) -> str:
        self.socket.settimeout(IDLE)
        try:
            line: str = _within(IDLE, super().read_requestline)
        finally:
            self.socket.settimeout(STALLED)
        return line

    def read_request(self, raw_requestline: str) -> Any:
        try:
            return _within(REQUEST, super().read_request, raw_requestline)
        except OSError:  # it has gone, or is too slow; the server would print a traceback
            return False

    def log_request(self) -> None:
        """Log nothing: requests that change something are logged where they are carried out."""


def _within(seconds: float, call: Any, *arguments: Any) -> Any:
    with gevent.Timeout(seconds, TimeoutError("too slow")):
        return call(*arguments)


class _Errors(io.StringIO):
    """Passes error messages of the server to the log, each in one line."""

    def write(self, text: str) -> int:
        if text.strip():
            log.warning("console.error", detail=text.strip().splitlines()[-1][:300])
        return len(text)


def serve(listener: gsocket.socket, app: WSGIApplication, give_way: Callable[[], None]) -> None:
    """Serve until the listener is closed. `give_way` is called between two reads of a client."""
    server = _Server(listener, app, log=None, error_log=_Errors(), spawn=Pool(MOST_CONNECTIONS), handler_class=_Handler)
    server.give_way = give_way
    server.serve_forever()

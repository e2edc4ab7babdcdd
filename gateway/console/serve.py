"""HTTP for the console: gevent's own server, with times and numbers that end."""

from __future__ import annotations

import io
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
IDLE = 60.0  # seconds that a connection may wait for its next request
STALLED = 15.0  # seconds that a client may take to read


class _Handler(WSGIHandler):
    def __init__(self, sock: gsocket.socket, address: Any, server: WSGIServer) -> None:
        sock.settimeout(STALLED)
        super().__init__(sock, address, server)

    def read_requestline(self) -> str:
        self.socket.settimeout(IDLE)
        try:
            line: str = _within(IDLE, super().read_requestline)
        finally:
            self.socket.settimeout(STALLED)
        return line

    def read_request(self, raw_requestline: str) -> Any:
        return _within(REQUEST, super().read_request, raw_requestline)

    def log_request(self) -> None:
        """Nothing: what changes something is logged where it is done."""


def _within(seconds: float, call: Any, *arguments: Any) -> Any:
    with gevent.Timeout(seconds, TimeoutError("too slow")):
        return call(*arguments)


class _Errors(io.StringIO):
    """What the server has to say goes to the log, in one line."""

    def write(self, text: str) -> int:
        if text.strip():
            log.warning("console.error", detail=text.strip().splitlines()[-1][:300])
        return len(text)


def serve(listener: gsocket.socket, app: WSGIApplication) -> None:
    """Serve until the listener is closed."""
    server = WSGIServer(
        listener, app, log=None, error_log=_Errors(), spawn=Pool(MOST_CONNECTIONS), handler_class=_Handler
    )
    server.serve_forever()

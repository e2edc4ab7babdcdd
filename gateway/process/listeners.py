"""Listening TCP sockets, made by the supervisor: the workers have no right to, and a replaced one finds its backlog."""

from __future__ import annotations

import socket

from alg.address import Endpoint
from gateway.config import Config, parse_endpoint
from gateway.errors import AlgateError

BACKLOG = 4096


def listen_socks(config: Config) -> list[socket.socket]:
    """One set of SOCKS listeners (one worker's). Raises AlgateError naming the key and address."""
    return [_listen(f"socks.listen[{i}]", parse_endpoint(text)) for i, text in enumerate(config.socks.listen)]


def listen_transparent(config: Config) -> list[socket.socket]:
    """One set of listeners for redirected connections, on all addresses: REDIRECT picks the interface's own."""
    if not config.transparent_enabled:
        return []
    return [_listen("transparent.port", Endpoint(host, config.transparent.port)) for host in ("0.0.0.0", "::")]


def _listen(key: str, endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((endpoint.host, endpoint.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AlgateError(f"{key}: cannot listen on {endpoint}: {error.strerror}") from error
    return listener

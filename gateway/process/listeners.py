"""Listening TCP sockets, made by the supervisor: the workers have no right to, and a replaced one finds its backlog."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Literal, NamedTuple

from alg.address import Endpoint
from gateway.config import Config, parse_endpoint
from gateway.errors import AlgateError

BACKLOG = 4096

Kind = Literal["socks", "transparent"]


class Place(NamedTuple):
    """Where one of the fronts listens."""

    kind: Kind
    endpoint: Endpoint


def places(config: Config) -> dict[Place, str]:
    """Where a configuration wants listeners, with the key that says so. Redirected connections come to all addresses,
    for REDIRECT picks the interface's own."""
    found = {Place("socks", parse_endpoint(text)): f"socks.listen[{i}]" for i, text in enumerate(config.socks.listen)}
    if config.transparent_enabled:
        for host in ("0.0.0.0", "::"):
            found[Place("transparent", Endpoint(host, config.transparent.port))] = "transparent.port"
    return found


class Listeners:
    """The listening sockets of all workers: each has one of its own at every place (SO_REUSEPORT)."""

    def __init__(self, workers: int) -> None:
        self._sets: list[dict[Place, socket.socket]] = [{} for _ in range(workers)]

    def open(self, wanted: dict[Place, str]) -> None:
        """Listen at further places. Raises AlgateError naming the key and address, and then has opened none."""
        made: list[dict[Place, socket.socket]] = [{} for _ in self._sets]
        try:
            for new in made:
                for place, key in wanted.items():
                    new[place] = _listen(key, place.endpoint)
        except AlgateError:
            _close(sock for new in made for sock in new.values())
            raise
        for existing, new in zip(self._sets, made, strict=True):
            existing.update(new)

    def fds(self, worker: int, kind: Kind) -> list[int]:
        """The descriptors of one worker (by number) at the places of a kind."""
        return [sock.fileno() for place, sock in self._sets[worker].items() if place.kind == kind]

    def shut_down(self) -> None:
        """Refuse connections from now on, whoever holds the sockets too."""
        for sockets in self._sets:
            for sock in sockets.values():
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        _close(sock for sockets in self._sets for sock in sockets.values())


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


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

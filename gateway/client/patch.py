"""`with socksified(proxy):` is for libraries that make their sockets themselves and accept no proxy."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

from gateway.client.blocking import connect_socket
from gateway.client.proxy import Chain, Via, is_address
from gateway.client.sockets import REAL

TIMEOUT = 60.0  # seconds for a connection, where a socket has no timeout itself

_INTERNET = (socket.AF_INET, socket.AF_INET6)


@contextlib.contextmanager
def socksified(via: Via) -> Iterator[None]:
    """Within this context, every new TCP connection of this process by `socket.socket` goes through these proxies,
    which also resolve the names. Datagrams, and listening, are refused (EACCES), because they would bypass the proxies.

    It replaces `socket.socket`, `socket.create_connection` and `socket.getaddrinfo` for all threads. A socket that does
    not block is nevertheless connected when `connect` returns. Raises ProxySyntaxError.
    """
    chain = Chain.of(via)
    kept = socket.socket, socket.create_connection, socket.getaddrinfo
    real = kept[0]

    class Socket(real):  # type: ignore[valid-type, misc]
        """A socket that connects through the proxies."""

        _without_algate = real
        _peer: tuple[str, int] | None = None

        def connect(self, address: Any) -> None:
            if self.family not in _INTERNET:
                super().connect(address)
                return
            _only_streams(self)
            if self._peer is not None:
                raise OSError(errno.EISCONN, "it is connected already")
            before = self.gettimeout()
            connect_socket(self, chain, str(address[0]), int(address[1]), before or TIMEOUT)
            self._peer = (str(address[0]), int(address[1]))

        def connect_ex(self, address: Any) -> int:
            try:
                self.connect(address)
            except OSError as error:
                return error.errno or errno.ECONNABORTED
            return 0

        def getpeername(self) -> Any:
            if self._peer is None:
                return super().getpeername()
            return self._peer if self.family == socket.AF_INET else (*self._peer, 0, 0)

        def sendto(self, *arguments: Any) -> int:
            self._not_past_the_proxy()
            return int(super().sendto(*arguments))

        def sendmsg(self, *arguments: Any) -> int:
            self._not_past_the_proxy()
            return int(super().sendmsg(*arguments))

        def listen(self, *arguments: Any) -> None:
            if self.family in _INTERNET:
                raise PermissionError(errno.EACCES, "nobody could connect: gateway.client.listen waits at the proxy")
            super().listen(*arguments)

        def _not_past_the_proxy(self) -> None:
            if self.family in _INTERNET and self._peer is None:
                _only_streams(self)

    def create_connection(
        address: tuple[str, int],
        timeout: Any = None,
        source_address: Any = None,
        *,
        all_errors: bool = False,
    ) -> socket.socket:
        host = address[0]
        sock = Socket(socket.AF_INET6 if ":" in host and is_address(host) else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if isinstance(timeout, int | float):
                sock.settimeout(timeout)
            elif socket.getdefaulttimeout() is not None:
                sock.settimeout(socket.getdefaulttimeout())
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        if text is None or is_address(text):
            return kept[2](host, port, family, type, proto, flags)
        number = port if isinstance(port, int) else kept[2](None, port, 0, type or socket.SOCK_STREAM)[0][4][1]
        # The name itself stands for the address: the proxy finds that.
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (text, number))]

    setattr(create_connection, REAL, kept[1])
    setattr(getaddrinfo, REAL, kept[2])
    socket.socket, socket.create_connection, socket.getaddrinfo = Socket, create_connection, getaddrinfo  # type: ignore
    try:
        yield
    finally:
        socket.socket, socket.create_connection, socket.getaddrinfo = kept  # type: ignore[misc]


def _only_streams(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise PermissionError(errno.EACCES, "datagrams would go past the proxy: gateway.client.datagrams sends them")

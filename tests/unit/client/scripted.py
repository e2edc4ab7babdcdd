"""A proxy that says what a test has written down, over real sockets of the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

# What it waits for, byte by byte, and what it says then.
Lines = Sequence[tuple[bytes, bytes]]


class Proxy:
    """Serves one connection by a script, then is what the tunnel leads to: it says what it gets, in upper case."""

    def __init__(
        self, lines: Lines, dribble: float = 0.0, tail: bytes = b"", ends: bool = False, host: str = "127.0.0.1"
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self.failure: BaseException | None = None
        self._lines, self._dribble, self._tail, self._ends = lines, dribble, tail, ends
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        with sock, contextlib.suppress(OSError):
            for expected, answer in self._lines:
                got = b""
                while len(got) < len(expected):
                    data = sock.recv(len(expected) - len(got))
                    if not data:
                        return
                    got += data
                self.heard += got
                if got != expected:
                    self.failure = AssertionError(f"{got!r} came in place of {expected!r}")
                    return
                if self._dribble:
                    for number in range(len(answer)):
                        sock.sendall(answer[number : number + 1])
                        if self._stop.wait(self._dribble):
                            return
                else:
                    sock.sendall(answer)
            sock.sendall(self._tail)
            if self._ends:
                return
            while data := sock.recv(65536):
                sock.sendall(data.upper())

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def scripted(
    *lines: tuple[bytes, bytes],
    dribble: float = 0.0,
    tail: bytes = b"",
    ends: bool = False,
    host: str = "127.0.0.1",
) -> Iterator[Proxy]:
    """`tail`: what it says of itself then; `ends`: and closes."""
    proxy = Proxy(lines, dribble, tail, ends, host)
    try:
        yield proxy
    finally:
        proxy.close()


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    sock.settimeout(5)
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"the end after {data!r}"
        data += part
    return data


GREETING = (b"\5\1\0", b"\5\0")
CONNECT = (b"\5\1\0\3\6a.test\0\x50", b"\5\0\0\1\xc0\0\2\1\x12\x34")

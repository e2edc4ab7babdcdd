"""The errors of proxies, in the form in which programs know them from connections without a proxy."""

from __future__ import annotations

import errno
from typing import Any, Literal

Failure = Literal["denied", "refused", "network", "host", "timeout", "failed"]

ERRNO: dict[Failure, int] = {
    "denied": errno.EACCES,
    "refused": errno.ECONNREFUSED,
    "network": errno.ENETUNREACH,
    "host": errno.EHOSTUNREACH,
    "timeout": errno.ETIMEDOUT,
    "failed": errno.ECONNABORTED,
}


class ProxyError(OSError):
    """A proxy has refused, has broken the protocol, or is gone. `failure` is the reason in one word, `errno` the one
    that a program without a proxy would get; `reply` is the proxy's own code (SOCKS 4, SOCKS 5 or HTTP status), if
    there was one.

    `closed`: it has closed the connection in place of an answer, as some do for what they do not know.

    It is also a ConnectionRefusedError, a TimeoutError or a PermissionError, if it means that.
    """

    failure: Failure
    reply: int | None
    closed = False

    def __new__(cls, failure: Failure, _detail: str, _reply: int | None = None) -> ProxyError:
        return super().__new__(_KINDS.get(failure, cls) if cls is ProxyError else cls)

    def __init__(self, failure: Failure, detail: str, reply: int | None = None) -> None:
        super().__init__(ERRNO[failure], detail)
        self.errno, self.strerror = ERRNO[failure], detail  # OSError leaves that to a `__new__` that sees them
        self.failure = failure
        self.reply = reply

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProxyError, (self.failure, str(self), self.reply)


class _Denied(ProxyError, PermissionError):
    pass


class _Refused(ProxyError, ConnectionRefusedError):
    pass


class _TimedOut(ProxyError, TimeoutError):
    pass


class _Aborted(ProxyError, ConnectionAbortedError):
    pass


_KINDS: dict[Failure, type[ProxyError]] = {
    "denied": _Denied,
    "refused": _Refused,
    "timeout": _TimedOut,
    "failed": _Aborted,
}

"""The mistakes of a datagram module: it is not shown for a while what it failed on, and each kind is logged once."""

from __future__ import annotations

import math
import traceback

import structlog

from alg.address import Endpoint
from gateway.driver.guard import Hung, ModuleGuard, described
from gateway.observe.counters import count

log = structlog.get_logger()

UNREAD_FOR = 60.0
"""Seconds for which a module is not shown the datagrams of a client and a server after it raised an exception on
one."""

_MOST_UNREAD = 4096  # of such pairs
_AFTER_AN_ERROR = 1.0  # seconds until a module whose clock failed is told the time again


class Faults:
    """The mistakes of one module. `name`: the module's; `names`: further fields of the log lines; `guard` counts the
    calls that were slow or hung, and knows whether the module is out.

    `unread`: for each client and server whose datagrams the module is not shown, the time until which that is so.
    `silent_until`: the time until which the module is not asked for its deadline.
    """

    def __init__(self, name: str, names: dict[str, str], guard: ModuleGuard) -> None:
        self.unread: dict[tuple[Endpoint, str], float] = {}
        self.silent_until = -math.inf
        self._guard = guard
        self._name = name
        self._names = names
        self._logged: set[str] = set()  # kinds of exceptions

    @property
    def is_out(self) -> bool:
        """Whether the module is not called any more."""
        return self._guard.is_out(self._name)

    def begin(self) -> float:
        """Note that a call begins. Returns the time, for `end`."""
        return self._guard.begin()

    def end(self, began: float) -> None:
        """Note that a call has ended without a mistake. It is counted if it was slow."""
        self._guard.end(self._name, self._names.get("flow", ""), began)

    def is_unread(self, client: Endpoint, server: str, now: float) -> bool:
        """Whether the module is not to be shown what these two say."""
        until = self.unread.get((client, server))
        if until is None:
            return False
        if until > now:
            return True
        del self.unread[client, server]
        return False

    def add(self, error: BaseException, client: Endpoint | None, server: str, now: float) -> None:
        """Note an exception of the module on a datagram of these two, which go on without it."""
        count("algate_module_errors_total", self._name)
        if isinstance(error, Hung):
            self._guard.count(self._name)
        self.silent_until = now + _AFTER_AN_ERROR
        if client is not None:
            if len(self.unread) >= _MOST_UNREAD:
                self.unread.clear()
            self.unread[client, server] = now + UNREAD_FOR
        kind = type(error).__name__
        if kind not in self._logged:
            self._logged.add(kind)
            frames = traceback.extract_tb(error.__traceback__)
            where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
            reason = ("it hangs" if isinstance(error, Hung) else described(error)) + where
            ends = {"client": str(client), "server": server} if client is not None else {}
            log.error("alg.broken", module=self._name, reason=reason, **ends, **self._names)

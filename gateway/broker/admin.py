"""The broker's answers to `algate pinholes` and `algate status`: in threads, from copies, as who asks may be slow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from gateway.broker.netfilter import Netfilter
from gateway.broker.netlink import NetfilterError
from gateway.observe.admin_wire import Rows, answer

_THREADS = 8


class AdminDoor:
    """Takes connections of the listening socket `sock`; a few at a time, further ones are closed."""

    def __init__(self, sock: socket.socket, netfilter: Netfilter) -> None:
        self._sock = sock
        self._netfilter = netfilter
        self._free = threading.BoundedSemaphore(_THREADS)

    def serve(self, snapshot: Callable[[], tuple[Rows, dict[str, Any]]]) -> None:
        """Answer one connection with what `snapshot` says now: open pinholes, and the status."""
        try:
            connection, _ = self._sock.accept()
        except OSError:
            return
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        pinholes, status = snapshot()

        def with_counters() -> Rows:
            try:
                return [{**status, "counters": self._netfilter.counters()}]
            except NetfilterError:
                return [status]

        def talk() -> None:
            try:
                answer(connection, {"pinholes": lambda: pinholes, "status": with_counters})
            finally:
                self._free.release()

        threading.Thread(target=talk, daemon=True).start()

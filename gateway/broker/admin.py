"""The broker's answers to the command line and the console. Threads wait for the clients, which may be slow; the
broker's own loop makes the answers, so that a loop that hangs does not answer."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from gateway.broker.netfilter import Netfilter
from gateway.broker.netlink import NetfilterError
from gateway.observe.admin import ANSWER_DEADLINE, Rows, answer
from gateway.observe.counters import recent_rows
from gateway.observe.doorkeeper import Doorkeeper

COUNTED = {
    "data": ("algate_kernel_bytes_total", "bytes"),
    "unread": ("algate_datagrams_unread_total", "packets"),
    "early": ("algate_datagrams_early_total", "packets"),
}
"""Metrics by the counter of the table, and which number of the counter they show."""

_THREADS = 8


class AdminDoor:
    """Takes connections of the listening socket `sock`, a few at a time; further ones are closed.

    `verbs`: what can be asked; `by_id`: verbs about one pinhole. Each is called by `work`, in the broker's loop, which
    has to call that whenever `wake` is readable.
    """

    def __init__(
        self,
        sock: socket.socket,
        netfilter: Netfilter,
        verbs: Mapping[str, Callable[[], Rows]],
        by_id: Mapping[str, Callable[[str], Rows]],
    ) -> None:
        self._sock = sock
        self._doorkeeper = Doorkeeper()
        self._netfilter = netfilter
        self._verbs = verbs
        self._by_id = by_id
        self._free = threading.BoundedSemaphore(_THREADS)
        self._jobs: deque[tuple[Callable[[], Rows], Future[Rows]]] = deque()
        self.wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Answer one connection."""
        connection = self._doorkeeper.accept(self._sock)
        if connection is None:
            return
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        try:
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
        except RuntimeError:  # this host, or this service, may have no more
            self._free.release()
            connection.close()

    def work(self) -> None:
        """Answer what the threads wait for."""
        self.wake.recv(64)
        while self._jobs:
            verb, future = self._jobs.popleft()
            try:
                future.set_result(verb())
            except (NetfilterError, OSError) as error:  # as where no descriptor is left
                future.set_exception(error)

    def _talk(self, connection: socket.socket) -> None:
        verbs = {name: self._in_loop(verb) for name, verb in self._verbs.items()}
        try:
            verbs |= {
                "status": self._with_counters(verbs["status"]),
                "metrics": self._with_kernels(verbs["metrics"]),
                "events": recent_rows,
            }
            answer(connection, verbs, {name: self._by_id_in_loop(verb) for name, verb in self._by_id.items()})
        except (NetfilterError, OSError):
            connection.close()  # no answer is the truth
        finally:
            self._free.release()

    def _in_loop(self, verb: Callable[[], Rows]) -> Callable[[], Rows]:
        def ask() -> Rows:
            future: Future[Rows] = Future()
            self._jobs.append((verb, future))
            self._waker.send(b"\0")
            return future.result(ANSWER_DEADLINE)

        return ask

    def _by_id_in_loop(self, verb: Callable[[str], Rows]) -> Callable[[str], Rows]:
        return lambda name: self._in_loop(lambda: verb(name))()

    def _with_counters(self, status: Callable[[], Rows]) -> Callable[[], Rows]:
        def ask() -> Rows:
            (row,) = status()
            return [{**row, **self._counters()}]

        return ask

    def _with_kernels(self, metrics: Callable[[], Rows]) -> Callable[[], Rows]:
        """Add the table's counters: what the kernel carried through pinholes, and what it kept from modules and
        pinholes."""

        def ask() -> Rows:
            (row,) = metrics()
            counters = self._counters().get("counters", {})
            for name, (metric, unit) in COUNTED.items():
                if name in counters:
                    row["samples"].append([metric, counters[name][unit]])
            return [row]

        return ask

    def _counters(self) -> dict[str, Any]:
        try:
            return {"counters": self._netfilter.counters()}
        except NetfilterError:
            return {}

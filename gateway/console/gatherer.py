"""Collects what the other processes report: all are asked at once, and the results are kept for the charts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import gevent
import msgspec
from gevent.event import Event
from gevent.lock import RLock

from gateway.console.totals import Series, Totals, check_row
from gateway.observe.admin import Rows

TIMEOUT = 1.0  # seconds that a process may take to answer, else it counts as dead
WATCHED = 2.0  # seconds between two polls while a page is open
UNWATCHED = 5.0
POINTS = 720  # of the charts
MOST_WATCHERS = 16
MOST_SHARED = 8  # answers that are kept for a moment


class NoProcessAnswer(Exception):
    """A process did not answer. The text says why."""


class Asking(Protocol):
    """A function that asks a process (its name, a verb, an id) within so many seconds. Raises NoProcessAnswer."""

    def __call__(self, process: str, verb: str, id: str, timeout: float) -> Rows: ...


class ProcessAnswer(msgspec.Struct, frozen=True):
    """The answer of a process to "metrics" after `seconds`. `row` is None if it did not answer, and `error` says
    why."""

    seconds: float
    row: dict[str, Any] | None = None
    error: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """One poll of all processes. `time`: Unix time; `begun`: monotonic; `supervisor`: its status, None without an
    answer."""

    time: float
    begun: float
    supervisor: dict[str, Any] | None
    answers: dict[str, ProcessAnswer]

    def failures(self) -> list[str]:
        """The reasons why the gateway is not healthy: processes that did not answer."""
        gone = set()
        if self.supervisor is not None and self.supervisor["state"] == "draining":  # they are meant to end
            gone = {name for name, child in self.supervisor["children"].items() if child["pid"] is None}
        silent = [(name, answer) for name, answer in self.answers.items() if answer.row is None and name not in gone]
        return [f"{name}: {answer.error}" for name, answer in silent]

    def obstacles(self) -> list[str]:
        """The reasons why the gateway is not ready to serve."""
        found = self.failures()
        if self.supervisor is not None and self.supervisor["state"] != "running":
            found.append(f"supervisor: {self.supervisor['state']}")
        broker = self.answers.get("broker")
        row = broker.row if broker is not None else None
        if row is not None and ["algate_broker_table_present", True] not in row["samples"]:
            found.append("broker: its nft table is gone (restart algate if it does not come back)")
        if self.supervisor is not None and self.supervisor.get("obstacle"):
            found.append(f"supervisor: {self.supervisor['obstacle']}")
        return found

    def samples(self) -> list[tuple[Series, float]]:
        """Return the metrics that only the console knows."""
        found: list[tuple[Series, float]] = [(("console", "algate_ready"), not self.obstacles())]
        for name, answer in self.answers.items():
            found.append(((name, "algate_process_up"), answer.row is not None))
            found.append(((name, "algate_process_answer_seconds"), answer.seconds))
        return found


class Gatherer:
    """Polls the processes. `names`: the processes at first; later the supervisor says which there are."""

    def __init__(self, names: Sequence[str], ask: Asking, totals: Totals) -> None:
        self._names = list(names)
        self._ask = ask
        self.totals = totals
        self.points: deque[list[float]] = deque(maxlen=POINTS)
        self._looking = RLock()
        self._snapshot: Snapshot | None = None
        self._watchers: set[Event] = set()
        self._wanted = Event()
        self._sharing = RLock()
        self._shared: dict[tuple[str, str], tuple[float, list[str], Rows]] = {}

    def run(self) -> None:
        """Poll again and again; does not return."""
        while True:
            self.look()
            self._wanted.clear()
            self._wanted.wait(WATCHED if self._watchers else UNWATCHED)

    def look(self) -> Snapshot:
        """Return the result of a poll that began after this call did."""
        called = time.monotonic()
        with self._looking:
            if self._snapshot is None or self._snapshot.begun < called:
                self._snapshot = self._look()
                self.points.append(self._point(self._snapshot))
                for watcher in self._watchers:
                    watcher.set()
            return self._snapshot

    def watch(self) -> Iterator[Snapshot]:
        """Yield the result of every poll from now on, the first one at once. Raises NoProcessAnswer if there are
        too many watchers."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise NoProcessAnswer("too many are watching")
        return self._watch()

    def _watch(self) -> Iterator[Snapshot]:
        watcher = Event()
        self._watchers.add(watcher)
        self._wanted.set()
        try:
            yield self._snapshot or self.look()
            while True:
                watcher.wait()
                watcher.clear()
                assert self._snapshot is not None
                yield self._snapshot
        finally:
            self._watchers.discard(watcher)

    def rows(self, verb: str, id: str = "") -> tuple[list[str], Rows]:
        """Return the processes that did not answer, and the rows of all others. Simultaneous calls share one
        question."""
        key = (verb, id)
        with self._sharing:
            known = self._shared.pop(key, None)
            if known is None or known[0] + WATCHED / 2 < time.monotonic():
                known = (time.monotonic(), *self._ask_all(self._names, verb, id))
            self._shared[key] = known
            while len(self._shared) > MOST_SHARED:
                del self._shared[next(iter(self._shared))]
            return known[1], known[2]

    def tell(self, verb: str, id: str) -> Rows:
        """Send a command to the processes that it concerns, and return their rows."""
        concerned = [name for name in self._names if name not in ("supervisor", "console")]
        return self._ask_all(concerned, verb, id)[1]

    def _ask_all(self, names: list[str], verb: str, id: str) -> tuple[list[str], Rows]:
        jobs = [gevent.spawn(self._rows_of, name, verb, id) for name in names]
        gevent.joinall(jobs)
        silent = [name for name, job in zip(names, jobs, strict=True) if job.value is None]
        return silent, [row for job in jobs for row in job.value or ()]

    def _rows_of(self, name: str, verb: str, id: str) -> Rows | None:
        try:
            return self._ask(name, verb, id, 3 * TIMEOUT)
        except NoProcessAnswer:
            return None

    def _look(self) -> Snapshot:
        begun, now = time.monotonic(), time.time()
        status = gevent.spawn(self._status)
        jobs = {name: gevent.spawn(self._metrics, name) for name in self._names}
        status.join()
        gevent.joinall(list(jobs.values()))
        if status.value is not None:
            expected = ["supervisor", *status.value["children"]]
            for name in set(expected) - set(jobs):
                jobs[name] = gevent.spawn(self._metrics, name)
            gevent.joinall(list(jobs.values()))
            self._names = expected
        answers = {name: jobs[name].get() for name in self._names}
        for name, answer in answers.items():
            if answer.row is None:
                self.totals.lost(name)
            else:
                self.totals.take(answer.row)
        self.totals.keep()
        return Snapshot(now, begun, status.value, answers)

    def _status(self) -> dict[str, Any] | None:
        try:
            return next(iter(self._ask("supervisor", "status", "", TIMEOUT)), None)
        except NoProcessAnswer:
            return None

    def _metrics(self, name: str) -> ProcessAnswer:
        since = time.monotonic()
        try:
            (row,) = self._ask(name, "metrics", "", TIMEOUT)
            check_row(row, name)
        except NoProcessAnswer as error:
            return ProcessAnswer(time.monotonic() - since, error=str(error))
        except ValueError as error:
            return ProcessAnswer(time.monotonic() - since, error=f"no metrics in its answer: {error}")
        return ProcessAnswer(time.monotonic() - since, row)

    def _point(self, snapshot: Snapshot) -> list[float]:
        sums = self.totals.sums()

        def total(name: str, *labels: str) -> float:
            found = sums.get(name, {})
            return sum(value for key, value in found.items() if key[: len(labels)] == labels)

        return [
            round(snapshot.time, 3),
            total("algate_flows"),
            total("algate_flow_bytes_total", "up"),
            total("algate_flow_bytes_total", "down"),
            total("algate_flows_opened_total"),
            total("algate_denials_total"),
            total("algate_pinholes"),
            total("algate_edits_total"),
            total("algate_pinhole_refusals_total"),
            total("algate_calls"),
            total("algate_kernel_bytes_total"),
        ]

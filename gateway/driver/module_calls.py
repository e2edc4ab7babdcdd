"""Calls of a module that are no events: it is made, writes its journal, and says what it has to show to people.

A module that fails at such a call has no answer to it, and the first failure in each function is logged (`alg.broken`).
All others are made and asked as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from alg.datagrams import Datagram, DatagramCommand, DatagramEvent, Kicked, Release, Row, Shown, ShownModule
from gateway.driver.guard import Broken, ModuleGuard
from gateway.observe.counters import count
from gateway.observe.log import get_logger
from gateway.observe.metrics import BY_NAME, Sample

log = get_logger()

T = TypeVar("T")

_guard = ModuleGuard()
_logged: set[tuple[str, str]] = set()


def attempt(name: str, function: Callable[..., T], *arguments: Any, otherwise: T) -> T:
    """Call a function of the module `name`, or one that calls it. Returns `otherwise` if it raises or hangs."""
    try:
        return _guard.call(name, "", function, *arguments)
    except Broken as broken:
        count("algate_module_errors_total", name)
        where = name, getattr(function, "__qualname__", type(function).__name__)
        if where not in _logged:
            _logged.add(where)
            log.error("alg.broken", module=name, reason=str(broken))
        return otherwise


class UnreadModule:
    """Stands where a module could not be made: every datagram goes on as it came."""

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        return [Release(event.packet)] if isinstance(event, Datagram) else []

    def deadline(self) -> float | None:
        return None


# --- what is shown to people ----------------------------------------------------------------------------------------


def rows_of(name: str, module: ShownModule, table: str, shown: Shown) -> list[Row]:
    """Return the rows of a table of the module `name`."""
    nothing: list[Row] = []
    return attempt(name, _rows, module, table, shown, otherwise=nothing)


def samples_of(name: str, module: ShownModule) -> list[Sample]:
    """Return the metrics of the module `name`."""
    nothing: list[Sample] = []
    return attempt(name, _samples, module, otherwise=nothing)


def counts_of(name: str, module: ShownModule) -> dict[str, int]:
    """Return what the module `name` has counted, for `algate status`."""
    nothing: dict[str, int] = {}
    return attempt(name, _counts, module, otherwise=nothing)


def kicked_by(name: str, module: ShownModule, id: str) -> list[Kicked]:
    """End what has this id in the module `name`, and return what was ended."""
    nothing: list[Kicked] = []
    return attempt(name, _kicked, module, id, otherwise=nothing)


def _rows(module: ShownModule, table: str, shown: Shown) -> list[Row]:
    rows = [dict(row) for row in module.table(table, shown)]
    msgspec.json.encode(rows)  # raises here if it cannot be sent
    return rows


def _samples(module: ShownModule) -> list[Sample]:
    samples: list[Sample] = []
    for (metric, *labels), value in module.samples():
        if metric in BY_NAME and len(labels) == len(BY_NAME[metric].labels):
            samples.append(((metric, *map(str, labels)), float(value)))
    return samples


def _counts(module: ShownModule) -> dict[str, int]:
    return {str(name): int(number) for name, number in module.counts().items()}


def _kicked(module: ShownModule, id: str) -> list[Kicked]:
    return [Kicked({"client": "", "server": "", **row}, tuple(map(int, refs))) for row, refs in module.kick(id)]

"""What a flow's module works with, in addition to the flow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from alg.address import Endpoint
from alg.api import Side
from gateway.driver.afterlife import Afterlife
from gateway.driver.guard import ModuleGuard
from gateway.net.addresses import PublicAddress
from gateway.pinhole.backend import Backend, Carry, DataPaths


def _nothing_announced(_client: str, _target: Endpoint, _seconds: float) -> None:
    """The default of `announce`: does nothing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of one flow.

    `public`: the address at which a side is told to find the other one; the client is told of a published server only.
    `may_transfer`: whether a rule lets the server exchange files with a third host. `may_map`: whether one lets the
    client have a public port for this socket of its own. `announce`: is called with where
    the client is about to connect, and the seconds for which that counts. `read`: returns what carries a connection
    that the module is to read, by the reason of its pinhole; None: it may not ask for that. `afterlife`: takes the
    modules that outlive their flow.
    """

    backend: Backend
    paths: DataPaths
    public: Mapping[Side, PublicAddress]
    may_transfer: Callable[[Endpoint], bool]
    may_map: Callable[[Endpoint], bool]
    guard: ModuleGuard
    afterlife: Afterlife
    announce: Callable[[str, Endpoint, float], None] = _nothing_announced
    read: Callable[[str], Carry] | None = None
    now: Callable[[], float] = field(default=time.monotonic)

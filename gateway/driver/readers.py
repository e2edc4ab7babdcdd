"""The values that tell drivers which module reads which ports, in place of the configuration. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from alg.api import AlgModule, Mode
from alg.registry import DatagramKind


class StreamReader(NamedTuple):
    """A module that reads flows to its ports. `kind`: its class. `options`: an instance of its `Options`; None if it
    has none."""

    name: str
    kind: type[AlgModule]
    mode: Mode
    options: object | None


class DatagramReader(NamedTuple):
    """A module that reads datagrams from and to its ports. `options` as for `StreamReader`."""

    kind: DatagramKind
    mode: Mode
    options: object | None

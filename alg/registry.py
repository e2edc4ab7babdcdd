"""Which protocol modules there are: the entry points of the group `algate.alg`, ours and those of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from alg.api import AlgModule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GROUP = "algate.alg"


class BrokenModule(Exception):
    """A protocol module that is installed cannot be used; the message names it and says why."""


def modules() -> Mapping[str, type[AlgModule]]:
    """All installed protocol modules by name ("ftp"). Raises BrokenModule for one that cannot be loaded."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise BrokenModule(f"two protocol modules are named {entry.name!r}: {other.value} and {entry.value}")
    return MappingProxyType({name: _load(entry) for name, entry in sorted(found.items())})


def _load(entry: EntryPoint) -> type[AlgModule]:
    origin = (
        f"protocol module {entry.name!r} ({entry.value}, of package {entry.dist.name if entry.dist else 'unknown'})"
    )
    try:
        loaded = entry.load()
    except Exception as error:  # a foreign package's import may fail in any way
        raise BrokenModule(f"{origin} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, type):
        raise BrokenModule(f"{origin} is not a class")
    for method in ("handle", "deadline"):
        if not callable(getattr(loaded, method, None)):
            raise BrokenModule(f"{origin} has no method {method}()")
    return cast(type[AlgModule], loaded)


def options_of(module: type[AlgModule]) -> type[DataclassInstance] | None:
    """The dataclass in which a module declares its own keys of `[alg.NAME]`; None: it has none."""
    options: type[DataclassInstance] | None = getattr(module, "Options", None)
    return options

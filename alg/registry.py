"""Finds the installed protocol modules, ours and those of other packages, by their entry points.

Modules of streams are in the group `algate.alg`, modules of datagrams in `algate.datagram`. A protocol that has both
names its module of datagrams as the attribute `datagrams` of its class of streams. What a class declares is read here,
and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from alg.api import API, PINHOLE_KINDS, AlgModule, Mode
from alg.datagrams import DatagramContext, DatagramModule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GROUP = "algate.alg"
DATAGRAM_GROUP = "algate.datagram"
OURS = "algate"  # the package of our own modules


class BrokenModule(Exception):
    """An installed protocol module cannot be used. The message names it and says why."""


@dataclass(frozen=True)
class DatagramKind:
    """An installed module of datagrams, with what its class declares (`alg.datagrams.DatagramModule`)."""

    name: str
    package: str
    made_by: type[DatagramModule]
    options: type[DataclassInstance] | None
    shown: bool
    recorded: bool
    tables: tuple[str, ...]
    kinds: frozenset[str]
    read_inbound: bool = False

    def make(self, context: DatagramContext) -> tuple[DatagramModule, float | None]:
        """Make a module. Also returns the seconds between two `Activity` events that it wants; None: it wants none."""
        module = self.made_by(context)
        every: float | None = getattr(module, "look_every", None)
        return module, every


@dataclass(frozen=True, slots=True)
class Traits:
    """What a module of streams declares by attributes of the same names (`alg.api.AlgModule`), with the defaults."""

    look_every: float | None = None
    shown: bool = False
    most_held: int = 131072
    share: float = 0.25
    conceal: Callable[[bytes], bytes] | None = None
    outlives: bool = False
    kinds: frozenset[str] = frozenset()


_DEFAULTS = Traits()


def traits_of(module: AlgModule) -> Traits:
    """Return what a module declares, and the defaults for the rest."""
    return Traits(
        getattr(module, "look_every", _DEFAULTS.look_every),
        bool(getattr(module, "shown", _DEFAULTS.shown)),
        int(getattr(module, "most_held", _DEFAULTS.most_held)),
        float(getattr(module, "share", _DEFAULTS.share)),
        getattr(module, "conceal", None),
        bool(getattr(module, "outlives", _DEFAULTS.outlives)),
        kinds_of(type(module)),
    )


def modules() -> Mapping[str, type[AlgModule]]:
    """Return all installed modules of streams, by name ("ftp"). Raises BrokenModule for one that cannot be loaded."""
    return MappingProxyType({entry.name: cast(type[AlgModule], _load(entry)) for entry in _entries(GROUP)})


def stream_module(name: str) -> type[AlgModule]:
    """Return one installed module of streams, and load no other one. Raises BrokenModule if it is not there, or cannot
    be loaded."""
    for entry in _entries(GROUP):
        if entry.name == name:
            return cast(type[AlgModule], _load(entry))
    raise BrokenModule(f"the module {name} is not installed")


def loadable() -> tuple[Mapping[str, type[AlgModule]], Mapping[str, DatagramKind], Mapping[str, str]]:
    """Return the modules that this process can load: those of streams and of datagrams by name, and the reasons why
    others cannot be loaded. Processes may differ, because their users may read different files."""
    streams: dict[str, type[AlgModule]] = {}
    datagrams: dict[str, DatagramKind] = {}
    broken: dict[str, str] = {}
    for group in (GROUP, DATAGRAM_GROUP):
        try:
            entries = list(_entries(group))
        except BrokenModule as error:
            broken[""] = str(error)
            continue
        for entry in entries:
            try:
                loaded = _load(entry)
                face = loaded if group == DATAGRAM_GROUP else getattr(loaded, "datagrams", None)
                if face is not None:
                    datagrams[entry.name] = _datagram_kind(entry, _checked(face, _origin(entry)))
                if group == GROUP:
                    streams[entry.name] = cast(type[AlgModule], loaded)
            except BrokenModule as error:
                broken[entry.name] = str(error)
    return streams, datagrams, broken


def datagram_modules() -> Mapping[str, DatagramKind]:
    """Return all installed modules of datagrams, by name ("sip"). Raises BrokenModule for one that cannot be loaded."""
    found: dict[str, DatagramKind] = {}
    for entry in _entries(GROUP):
        face = getattr(_load(entry), "datagrams", None)
        if face is not None:
            found[entry.name] = _datagram_kind(entry, _checked(face, _origin(entry)))
    for entry in _entries(DATAGRAM_GROUP):
        if entry.name in found:
            raise BrokenModule(f"two modules of datagrams are named {entry.name!r}: one is {entry.value}")
        found[entry.name] = _datagram_kind(entry, _load(entry))
    return MappingProxyType(found)


def transports() -> Mapping[str, tuple[str, ...]]:
    """Return the transports that each installed module reads: "tcp", "udp" or both. Raises BrokenModule."""
    return {name: of_module.transports for name, of_module in declared().items()}


def options_by_name() -> Mapping[str, type[DataclassInstance] | None]:
    """Return the dataclasses in which installed modules declare their own keys, by name. Raises BrokenModule."""
    return {name: of_module.options for name, of_module in declared().items()}


@dataclass(frozen=True)
class Declared:
    """What an installed module declares for its section of the configuration.

    `transports`: what it reads. `options`: its own keys. `ports`, `mode`: where the section does not set them.
    `is_ours`: whether it is of algate's own package; such a module is used without a section, too.
    """

    transports: tuple[Literal["tcp", "udp"], ...]
    options: type[DataclassInstance] | None
    ports: tuple[int, ...]
    mode: Mode
    is_ours: bool


def declared() -> Mapping[str, Declared]:
    """Return what each installed module declares for its section of the configuration, by one look at what is
    installed, which takes some ten milliseconds. Raises BrokenModule."""
    streams, datagrams = modules(), datagram_modules()
    ours = {entry.name for group in (GROUP, DATAGRAM_GROUP) for entry in _entries(group) if _package_of(entry) == OURS}
    found: dict[str, Declared] = {}
    for name in sorted({*streams, *datagrams}):
        classes: list[type] = [streams[name]] if name in streams else []
        classes += [datagrams[name].made_by] if name in datagrams else []
        read: list[Literal["tcp", "udp"]] = ["tcp"] if name in streams else []
        read += ["udp"] if name in datagrams else []
        first = classes[0]
        options: type[DataclassInstance] | None = getattr(first, "Options", None)
        ports = tuple(getattr(first, "default_ports", ()))
        mode = Mode(getattr(first, "default_mode", Mode.REWRITE))
        found[name] = Declared(tuple(read), options, ports, mode, name in ours)
    return found


@dataclass(frozen=True)
class Installed:
    """An installed module, usable or not. `transports`: what it can read. `kinds`: the kinds of pinholes that it may
    ask for. `problem`: why it cannot be used; "" if it can."""

    name: str
    package: str
    version: str
    api: int
    transports: tuple[str, ...]
    kinds: tuple[str, ...]
    problem: str


def installed() -> list[Installed]:
    """Return every module that an entry point names, by name, including broken ones."""
    found: dict[str, list[tuple[EntryPoint, str, type | None, str]]] = {}
    for group, transport in ((GROUP, "tcp"), (DATAGRAM_GROUP, "udp")):
        for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
            try:
                loaded, problem = _load(entry), ""
                face = getattr(loaded, "datagrams", None) if group == GROUP else None
                if face is not None:
                    found.setdefault(entry.name, []).append((entry, "udp", _checked(face, _origin(entry)), ""))
            except BrokenModule as error:
                loaded, problem = None, str(error)
            found.setdefault(entry.name, []).append((entry, transport, loaded, problem))
    rows = []
    for name, faces in sorted(found.items()):
        entry = faces[-1][0]
        classes = [loaded for _, _, loaded, _ in faces if loaded is not None]
        kinds = {kind for loaded in classes for kind in kinds_of(loaded)}
        versions = {int(getattr(loaded, "api", API[0])) for loaded in classes}
        rows.append(
            Installed(
                name,
                _package_of(entry),
                entry.dist.version if entry.dist else "",
                max(versions, default=0),
                tuple(sorted({transport for _, transport, loaded, _ in faces if loaded is not None})),
                tuple(sorted(kinds)),
                "; ".join(problem for *_, problem in faces if problem),
            )
        )
    return rows


def declared_kinds(names: Collection[str]) -> tuple[str, ...]:
    """Return the kinds of pinholes that any of these installed modules may ask for."""
    return tuple(sorted({kind for module in installed() if module.name in names for kind in module.kinds}))


def _datagram_kind(entry: EntryPoint, face: type) -> DatagramKind:
    return DatagramKind(
        entry.name,
        _package_of(entry),
        cast(type[DatagramModule], face),
        getattr(face, "Options", None),
        bool(getattr(face, "shown", False)),
        bool(getattr(face, "recorded", False)),
        tuple(getattr(face, "tables", ())),
        kinds_of(face),
        bool(getattr(face, "read_inbound", False)),
    )


def _package_of(entry: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to; "" if it is not known."""
    return entry.dist.name if entry.dist else ""


def _entries(group: str) -> Iterator[EntryPoint]:
    """Return the entry points of a group, by name. Raises BrokenModule for a name that two packages use."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise BrokenModule(f"two protocol modules are named {entry.name!r}: {other.value} and {entry.value}")
    yield from (found[name] for name in sorted(found))


def _origin(entry: EntryPoint) -> str:
    return f"protocol module {entry.name!r} ({entry.value}, of package {_package_of(entry) or 'unknown'})"


def _load(entry: EntryPoint) -> type:
    origin = _origin(entry)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # a foreign package's import may fail in any way
        raise BrokenModule(f"{origin} cannot be loaded: {type(error).__name__}: {error}") from error
    return _checked(loaded, origin)


def _checked(loaded: object, origin: str) -> type:
    if not isinstance(loaded, type):
        raise BrokenModule(f"{origin} is not a class")
    for method in ("handle", "deadline"):
        if not callable(getattr(loaded, method, None)):
            raise BrokenModule(f"{origin} has no method {method}()")
    version = getattr(loaded, "api", API[0])
    if version != API[0]:
        this = ".".join(map(str, API))
        raise BrokenModule(f"{origin} is written for version {version} of the interface of modules; this is {this}")
    if mistake := _mistake_in(loaded):
        raise BrokenModule(f"{origin}: {mistake}")
    return loaded


def _mistake_in(module: type) -> str:
    """Return what is wrong with the attributes by which a class declares what it wants; "" if nothing is."""
    options = getattr(module, "Options", None)
    if options is not None and not (isinstance(options, type) and is_dataclass(options)):
        return "its Options are no dataclass"
    for attribute in ("kinds", "tables", "gauges"):
        names = getattr(module, attribute, ())
        if not isinstance(names, tuple | list | set | frozenset) or not all(isinstance(name, str) for name in names):
            return f"its {attribute} are no list of names"
    for kind in getattr(module, "kinds", ()):
        if kind not in PINHOLE_KINDS:
            return f"it names {kind!r} as a kind of pinholes; there are {', '.join(PINHOLE_KINDS)}"
    ports = getattr(module, "default_ports", ())
    if not isinstance(ports, tuple | list) or not all(isinstance(port, int) and 0 < port < 65536 for port in ports):
        return "its default_ports are no list of ports"
    if (mode := getattr(module, "default_mode", Mode.REWRITE)) not in tuple(Mode):
        return f"its default_mode is {mode!r}, and none of {', '.join(Mode)}"
    for attribute in ("look_every", "most_held", "share"):
        number = getattr(module, attribute, None)
        if number is None or hasattr(number, "__get__"):  # each instance has its own, as a property or compiled
            continue
        if not (isinstance(number, int | float) and number > 0):
            return f"its {attribute} is {number!r}, and no number above 0"
    return ""


def kinds_of(module: type) -> frozenset[str]:
    """Return the kinds of pinholes that a class declares."""
    return frozenset(getattr(module, "kinds", ()))


def options_of(module: type[AlgModule]) -> type[DataclassInstance] | None:
    """Return the dataclass in which a module declares its own keys of `[alg.NAME]`; None if it has none."""
    options: type[DataclassInstance] | None = getattr(module, "Options", None)
    return options


def tables_of(module: object) -> tuple[str, ...]:
    """Return the names of the tables that a module shows (`alg.datagrams.ShownModule`)."""
    tables: tuple[str, ...] = getattr(module, "tables", ())
    return tables


def gauges_of(module: object) -> tuple[str, ...]:
    """Return the names of the metrics that the instances of a module in one process add up to."""
    gauges: tuple[str, ...] = getattr(module, "gauges", ())
    return gauges


def shown_tables() -> frozenset[str]:
    """Return the names of all tables that the modules show which this process can load."""
    streams, datagrams, _ = loadable()
    names = {name for kind in datagrams.values() for name in kind.tables}
    return frozenset(names | {name for module in streams.values() for name in getattr(module, "tables", ())})

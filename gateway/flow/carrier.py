"""What a flow is for the part that carries it, and what is asked of that part."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class HeldPinholes(Protocol):
    """The conversations of a module, each by the number that the module has given it."""

    def lease_ids(self) -> dict[int, str]: ...

    def traffic(self) -> list[tuple[int, int, int]]:
        """Return the number of each one, and the packets that came in and went out through it."""
        ...

    def close(self, ref: int) -> None: ...


class ModuleAtWork(NamedTuple):
    """A module that reads a flow, by its name, with what it has open. `transport`: "tcp" or "udp", of what it reads."""

    name: str
    module: object
    held: HeldPinholes
    transport: str


class Carrier(Protocol):
    """The part that moves a flow's bytes at the moment: the relay, or the driver of a protocol module. Counts are
    exact."""

    @property
    def up(self) -> int: ...

    @property
    def down(self) -> int: ...

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that it uses."""
        ...

    def readers(self) -> tuple[ModuleAtWork, ...]:
        """The modules that read what it carries: none, one of a connection, or one for each socket of an
        association."""
        ...

    def abort(self, reset: bool = True) -> None: ...

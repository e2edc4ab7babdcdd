"""Modules of datagrams and of streams that fail, each in its own way, in the calls that are no events too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from alg.address import Endpoint
from alg.api import (
    Closed,
    CloseWrite,
    Command,
    Deliver,
    Edit,
    Event,
    FlowContext,
    Opened,
    OpenPinhole,
    Received,
    Refused,
    Say,
    Side,
    Tick,
)
from alg.datagrams import (
    Datagram,
    DatagramCommand,
    DatagramContext,
    DatagramEvent,
    Entry,
    Kicked,
    Release,
    Row,
    Shown,
)


class Plain:
    """Sends every datagram on, with its first letter replaced."""

    def __init__(self, context: DatagramContext) -> None:
        pass

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        return [Release(event.packet, (Edit(0, 1, b"!", "odd.edit"),))] if isinstance(event, Datagram) else []

    def deadline(self) -> float | None:
        return None


class Unmade(Plain):
    """Cannot be made."""

    def __init__(self, context: DatagramContext) -> None:
        raise RuntimeError("it is not for this world")


class Raises(Plain):
    """Ends the process, or tries to: its mistake is no Exception."""

    def handle(self, event: DatagramEvent) -> NoReturn:
        sys.exit(3)


class Loops(Plain):
    """Does not come back."""

    def handle(self, event: DatagramEvent) -> NoReturn:
        while True:
            pass


class LateClock(Plain):
    """Serves, but does not come back from the question when it wants a tick."""

    def deadline(self) -> NoReturn:
        while True:
            pass


class Mute(Plain):
    """Serves, and fails at everything that it declares beside that."""

    recorded: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ("oddities",)

    def journal(self) -> Sequence[Entry]:
        raise RuntimeError("no journal")

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        raise RuntimeError("no memory")

    def table(self, name: str, shown: Shown) -> list[Row]:
        raise RuntimeError("no table")

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        raise RuntimeError("no samples")

    def counts(self) -> dict[str, int]:
        raise RuntimeError("no counts")

    def kick(self, name: str) -> list[Kicked]:
        raise RuntimeError("no kick")


class Talks(Mute):
    """Answers everything with what is no answer."""

    tables: ClassVar[tuple[str, ...]] = ("oddities",)

    def journal(self) -> Any:
        return [(7, "no ref", "no bytes")]

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        pass

    def table(self, name: str, shown: Shown) -> Any:
        return [{"what": object()}, 7]

    def samples(self) -> Any:
        return [7, ("no tuple", "no number")]

    def counts(self) -> Any:
        return 7

    def kick(self, name: str) -> Any:
        return [7]


# --- streams ----------------------------------------------------------------------------------------------------------


class Wants:
    """Declares all that a class can. It asks for a pinhole for "open", and for a kind that it has not declared for
    "anybody", and says what came of it."""

    @dataclass(frozen=True)
    class Options:
        greeting: str = "hello"
        after: float = 0.2

    api: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("once",)
    look_every: ClassVar[float] = 1.0
    shown: ClassVar[bool] = True
    most_held: ClassVar[int] = 100
    share: ClassVar[float] = 0.5

    def __init__(self, context: FlowContext) -> None:
        self._context = context
        assert isinstance(context.options, Wants.Options)
        self._options = context.options
        self._at: float | None = None

    @staticmethod
    def conceal(data: bytes) -> bytes:
        return data.replace(b"secret", b"******")

    def handle(self, event: Event) -> Sequence[Command]:
        match event:
            case Received(Side.CLIENT, b"open\n" | b"anybody\n" as data):
                target = Endpoint(self._context.client.host, 7100)
                peer = self._context.server.host if data == b"open\n" else None
                return [Deliver(Side.SERVER, data), OpenPinhole(1, target, peer, "tcp", 30.0, "odd.open")]
            case Received(Side.CLIENT, b"hold\n"):
                return []
            case Received(side, data, now):
                self._at = self._at if self._at is not None else now + self._options.after
                return [Deliver(side.other, data)]
            case Tick():
                self._at = float("inf")
                return [Say(Side.CLIENT, self._options.greeting.encode() + b"\n", "odd.greeting")]
            case Opened(public=public):
                return [Say(Side.CLIENT, f"opened {public.port}\n".encode(), "odd.answer")]
            case Refused(rule=rule):
                return [Say(Side.CLIENT, f"refused {rule}\n".encode(), "odd.answer")]
            case Closed(side):
                return [CloseWrite(side.other)]
        return []

    def deadline(self) -> float | None:
        return self._at

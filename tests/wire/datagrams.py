"""Plays dialogues of modules of datagrams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alg.address import Endpoint
from alg.api import Activity, ClosePinhole, Note, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.datagrams import (
    Datagram,
    DatagramCommand,
    DatagramContext,
    DatagramEvent,
    DatagramModule,
    Release,
    RevokeConversation,
    StandDown,
)
from tests.wire.script import Line, endpoint


def hosts(peers: tuple[str, ...] | None) -> str:
    """Who may send, in the words of the corpus."""
    return "any" if peers is None else ",".join(peers) or "nobody"


class DatagramPlayer:
    """Plays them against the module that `make` makes. What the datagrams are is said by a player of the protocol."""

    def __init__(self, make: Callable[[DatagramContext], DatagramModule], port: int) -> None:
        self.client, self.server = Endpoint("192.168.56.10", port), Endpoint("203.0.113.5", port)
        self.now = 0.0
        self.packets: dict[int, bytes] = {}
        self.edits: dict[int, tuple[Any, ...]] = {}
        self._make = make
        self._fixed: tuple[Endpoint, Endpoint] | None = None
        self._options: object | None = None
        self._module: DatagramModule | None = None

    # --- what a protocol has of its own -----------------------------------------------------------------------------

    def options(self, name: str, value: str) -> object:
        """Return the module's options, one of which is set."""
        raise ValueError(f"no options are known here: {name}={value}")

    def data(self, side: Side, event: Line) -> bytes:
        """Return the datagram of an event."""
        raise NotImplementedError

    def words(self, command: DatagramCommand) -> str:
        """Return a command of the module in the words of the corpus."""
        match command:
            case Release(packet, edits):
                self.edits[packet] = tuple(edits)
                return f"{'edit' if edits else 'pass'} {packet}"
            case OpenConversation(ref, target, second, peers, _, reason):
                beside = f"+{second}" if second is not None else ""
                return f"open {ref} {target}{beside} for {hosts(peers)} {reason}"
            case UpdateConversation(ref, peers, _):
                return f"update {ref} for {hosts(peers)}"
            case ClosePinhole(ref):
                return f"shut {ref}"
            case StandDown(_, server, rule):
                return f"stand-down {server} {rule}"
            case RevokeConversation(_, server, rule):
                return f"revoke {server} {rule}"
            case Note(code, _):
                return f"note {code}"
        raise AssertionError(f"the corpus has no word for {command}")

    # --- the player -------------------------------------------------------------------------------------------------

    def set(self, word: str, rest: str) -> None:
        match word:
            case "client":
                self.client = endpoint(rest)
            case "server":
                self.server = endpoint(rest)
            case "fixed":
                assert self._module is None, "at the top only"
                self._fixed = self.client, endpoint(rest)
            case "options":
                assert self._module is None, "at the top only"
                name, _, value = rest.partition("=")
                self._options = self.options(name, value)
            case _:
                raise ValueError(f"unknown setting {word!r}")

    def happens(self, event: Line) -> list[str]:
        if self._module is None:
            self._module = self._make(DatagramContext(self._options, fixed=self._fixed))
        commands = self._module.handle(self._event(event))
        return [self.words(command) for command in commands if not (isinstance(command, Note) and command.again)]

    def wanted(self, line: Line) -> str:
        return line.text

    def _event(self, event: Line) -> DatagramEvent:
        numbers = event.rest.split()
        match event.word:
            case "client" | "server":
                side, number = Side(event.word), len(self.packets) + 1
                data = self.packets[number] = self.data(side, event)
                return Datagram(number, side, self.client, self.server, data, self.now)
            case "opened":
                return Opened(int(numbers[0]), endpoint(numbers[1]), self.now)
            case "refused":
                return Refused(int(numbers[0]), event.rest.partition(" ")[2], self.now)
            case "tick":
                self.now = float(event.rest)
                return Tick(self.now)
            case "activity":
                return Activity(int(numbers[0]), int(numbers[1]), int(numbers[2]), self.now)
        raise ValueError(f"unknown event {event.word!r}")

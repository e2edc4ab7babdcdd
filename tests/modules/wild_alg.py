"""A module of streams that does something else at each event: delivers, holds back, opens, gives up its right to
pinholes, stands down, raises. What it does follows from the client's port."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Closed,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FlowContext,
    OpenPinhole,
    Received,
    Revoke,
    Side,
)

ACTIONS = (*("deliver",) * 12, *("part",) * 4, "hold", "hold", "open", "revoke", "raise", "bypass")


class Wild:
    """One connection."""

    api: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("once",)
    most_held: ClassVar[int] = 20_000

    def __init__(self, context: FlowContext) -> None:
        self._client = context.client.host
        self._peer = context.server.host
        self._chance = random.Random(context.client.port)
        self._held = {side: bytearray() for side in Side}
        self._closed: set[Side] = set()
        self._refs = 0

    def deadline(self) -> float | None:
        return None

    def handle(self, event: Event) -> Sequence[Command]:
        if isinstance(event, Received):
            self._held[event.side] += event.data
        elif isinstance(event, Closed):
            self._closed.add(event.side)
        match self._chance.choice(ACTIONS):
            case "part" if not self._closed:
                return [
                    Deliver(side.other, self._take(side, len(held) // 2))
                    for side, held in self._held.items()
                    if len(held) > 1
                ]
            case "hold" if not self._closed:
                return []
            case "open":
                self._refs += 1
                target = Endpoint(self._client, 20_000 + self._refs)
                return [*self._all(), OpenPinhole(self._refs, target, self._peer, "tcp", 60.0, "wild.open")]
            case "revoke":
                return [*self._all(), Revoke("wild.revoked")]
            case "raise":
                raise RuntimeError("a mistake")
            case "bypass":
                return [Bypass()]
        return self._all()

    def _take(self, side: Side, count: int) -> bytes:
        data = bytes(self._held[side][:count])
        del self._held[side][:count]
        return data

    def _all(self) -> list[Command]:
        commands: list[Command] = [
            Deliver(side.other, self._take(side, len(held))) for side, held in self._held.items() if held
        ]
        return commands + [CloseWrite(side.other) for side in Side if side in self._closed]

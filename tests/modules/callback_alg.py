"""CALLBACK, a made-up protocol: the client says `CALL ADDRESS:PORT`, and the server connects there."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from alg.address import Endpoint
from alg.api import (
    Bypass,
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
    Revoke,
    Side,
)
from alg.lines import LineBuffer

CALL = re.compile(rb"CALL ([0-9.]{7,15}):([0-9]{1,5})\r?\n")


class CallbackModule:
    """Edits the client's CALL lines; everything else goes on as it came."""

    api: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("once",)  # what it may open: pinholes for one connection
    shown: ClassVar[bool] = True  # its lines hold no secret

    def __init__(self, context: FlowContext) -> None:
        self._client, self._server = context.client, context.server
        self._lines = LineBuffer()
        self._held: deque[bytes] = deque()  # lines of the client; the first one waits for its pinhole
        self._closed = False

    def handle(self, event: Event) -> Sequence[Command]:
        match event:
            case Received(Side.SERVER, data):
                return [Deliver(Side.CLIENT, data)]
            case Received(Side.CLIENT, data):
                waits = bool(self._held)
                for lines in self._lines.feed(data):
                    self._held += lines.data.splitlines(keepends=True) if lines.whole else [lines.data]
                return [] if waits else self._go_on()
            case Opened(public=public):
                line = self._held.popleft()
                found = CALL.fullmatch(line)
                assert found is not None
                edit = Edit(found.start(1), found.end(2), str(public).encode(), "callback.call")
                return [Deliver(Side.SERVER, line, (edit,)), *self._go_on()]
            case Refused():
                return [Deliver(Side.SERVER, self._held.popleft()), *self._go_on()]
            case Closed(Side.CLIENT):
                self._closed = True
                return [] if self._held else self._go_on()
            case Closed(Side.SERVER):
                return [CloseWrite(Side.CLIENT)]
        return []

    def deadline(self) -> float | None:
        return None

    def _go_on(self) -> list[Command]:
        """Deliver lines up to the next one that needs a pinhole, and ask for that."""
        commands: list[Command] = []
        while self._held:
            found = CALL.fullmatch(self._held[0])
            if found is not None:
                if found[1].decode() != self._client.host:  # a third host: never opened, and never again trusted
                    rest = b"".join(self._held) + self._lines.release()
                    return [*commands, Revoke("callback.address"), Deliver(Side.SERVER, rest), Bypass()]
                target = Endpoint(self._client.host, int(found[2]))
                return [*commands, OpenPinhole(1, target, self._server.host, "tcp", 60.0, "callback.call")]
            commands.append(Deliver(Side.SERVER, self._held.popleft()))
        if self._closed:
            rest = self._lines.release()
            commands += [*([Deliver(Side.SERVER, rest)] if rest else []), CloseWrite(Side.SERVER)]
        return commands

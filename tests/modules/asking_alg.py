"""A made-up protocol whose client says itself what its module is to ask for: each line is a command of `alg.api` with
its fields, as JSON, and the module says the answers to it. It shows what drivers make of each command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import alg.api
from alg.address import Endpoint
from alg.api import Closed, CloseWrite, Command, Deliver, Edit, Event, FlowContext, Opened, Received, Refused, Say, Side

ENDPOINTS = frozenset({"target", "client", "server", "other"})


class AskingModule:
    """Each line goes on to the server behind what it asks for."""

    api: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = alg.api.PINHOLE_KINDS

    def __init__(self, context: FlowContext) -> None:
        self._rest = b""
        self._opened_as = context.opened_as

    def handle(self, event: Event) -> Sequence[Command]:
        match event:
            case Received(Side.SERVER, data) if self._opened_as is not None:
                edits = [Edit(0, 2, b"it is ", self._opened_as)] if data.startswith(b"I ") else []
                return [Deliver(Side.CLIENT, data, tuple(edits))]
            case Received(Side.CLIENT, data):
                *lines, self._rest = (self._rest + data).split(b"\n")
                return [command for line in lines for command in (_command(line), Deliver(Side.SERVER, line + b"\n"))]
            case Received(Side.SERVER, data):
                return [Deliver(Side.CLIENT, data)]
            case Opened(ref, public, _, inner):
                return [Say(Side.CLIENT, f"opened {ref} {public} {inner}\n".encode(), "asking.answer")]
            case Refused(ref, rule):
                return [Say(Side.CLIENT, f"refused {ref} {rule}\n".encode(), "asking.answer")]
            case Closed(side):
                return [CloseWrite(side.other)]
        return []

    def deadline(self) -> float | None:
        return None


def _command(line: bytes) -> Command:
    name, fields = json.loads(line)
    made: Command = getattr(alg.api, name)(**{key: _value(key, value) for key, value in fields.items()})
    return made


def _value(key: str, value: Any) -> Any:
    if key in ENDPOINTS and value is not None:
        host, port = value
        return Endpoint(host, port)
    if key in ("send", "expect"):
        return value.encode()
    return tuple(value) if isinstance(value, list) else value

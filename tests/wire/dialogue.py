"""Dialogues of modules of streams, as README.md describes them: read from a file, and run against a module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from alg.address import Endpoint
from alg.api import (
    AlgModule,
    AskTransfer,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FindSocket,
    FlowContext,
    Note,
    OpenConversation,
    Opened,
    OpenExchange,
    OpenMapping,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    Probe,
    Received,
    Refused,
    Revoke,
    Say,
    Side,
    Tick,
    UpdateConversation,
    UpdateExchange,
    UpdateMapping,
    apply_edits,
)
from tests.wire import script
from tests.wire.script import endpoint

Cut = Callable[[bytes], list[bytes]]


class Made(Protocol):
    """A class of modules."""

    Options: Any

    def __call__(self, context: FlowContext) -> AlgModule: ...


@dataclass(frozen=True)
class Kind:
    """A protocol: its module, the server's port, and how long a pinhole for one connection may wait (seconds)."""

    module: Made
    port: int
    ttl: float = 60.0


@dataclass
class Step:
    """An event of a dialogue, where it stands, and what must come of it."""

    number: int
    event: Event
    expected: list[str] = field(default_factory=list)


@dataclass
class Dialogue:
    context: FlowContext
    steps: list[Step]


def unescape(text: str) -> bytes:
    plain = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}

    def byte(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        return plain[name] if name in plain else bytes.fromhex(name[1:])

    return re.sub(rb"\\(r|n|t|\\|x[0-9a-fA-F]{2})", byte, text.encode())


def read(path: Path, kind: Kind) -> Dialogue:
    """Return the steps of a file, and the flow that they are on."""
    context = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", kind.port))
    steps: list[Step] = []
    now, latest = 0.0, b""
    for part in script.read(path):
        line = part.event if isinstance(part, script.Step) else part
        try:
            if not isinstance(part, script.Step):
                context = _set(context, kind, part.word, part.rest)
                continue
            if line.word == "tick":
                now = float(line.rest)
            event = read_event(line.word, line.rest, now)
            if isinstance(event, Received):
                latest = event.data
            steps.append(Step(line.number, event, [_wanted(answer, latest) for answer in part.expected]))
        except (ValueError, KeyError, IndexError) as error:
            raise AssertionError(f"{path.name}:{line.number}: {error}") from error
    return Dialogue(context, steps)


def _set(context: FlowContext, kind: Kind, word: str, rest: str) -> FlowContext:
    match word:
        case "flow":
            client, server = rest.split()
            return replace(context, client=endpoint(client), server=endpoint(server))
        case "public":
            return replace(context, public=endpoint(rest))
        case "published":
            return replace(context, inside=Side.SERVER, published=endpoint(rest) if rest else None)
        case "transfers":
            return replace(context, transfers=True)
        case "options":
            pairs = (pair.split("=") for pair in rest.split())
            own = {key: int(value) if value.isdecimal() else value for key, value in pairs}
            return replace(context, options=kind.module.Options(**own))
    raise ValueError(f"unknown mark {word!r}")


def _wanted(answer: script.Line, latest: bytes) -> str:
    if answer.word in ("client", "server"):
        return f"{answer.word} {latest if answer.rest == '=' else unescape(answer.rest)!r}"
    return answer.text


def read_event(word: str, rest: str, now: float) -> Event:
    if word in ("client", "server"):
        return Received(Side(word), unescape(rest), now)
    first, _, second = rest.partition(" ")
    match word:
        case "closed":
            return Closed(Side(first), now)
        case "opened":
            public, _, inner = second.partition(" within ")
            return Opened(int(first), endpoint(public), now, endpoint(inner) if inner else None)
        case "refused":
            return Refused(int(first), second, now)
        case "tick":
            return Tick(now)
    raise ValueError(f"unknown event {word!r}")


def shown(commands: list[Command], ttl: float) -> list[str]:
    """The commands in the words of the corpus, with neighbouring deliveries to one side as one."""
    lines: list[str] = []
    merged: tuple[Side, bytes] | None = None
    for command in [*commands, None]:
        if isinstance(command, Deliver | Say):
            data = apply_edits(command.data, command.edits) if isinstance(command, Deliver) else command.data
            if merged and merged[0] is command.to:
                merged = (command.to, merged[1] + data)
                continue
            if merged:
                lines.append(f"{merged[0]} {merged[1]!r}")
            merged = (command.to, data)
            continue
        if merged:
            lines.append(f"{merged[0]} {merged[1]!r}")
            merged = None
        if command is not None:
            lines.append(words(command, ttl))
    return lines


def words(command: Command, ttl: float) -> str:
    match command:
        case OpenPinhole(ref, target, peer, "tcp", seconds, reason) if seconds == ttl:
            return f"open {ref} {target} for {peer or 'anybody'} {reason}"
        case OpenConversation(ref, target, second, peers, 300.0, reason):
            pair = f"+{second}" if second is not None else ""
            return f"converse {ref} {target}{pair} for {' '.join(peers or ())} {reason}"
        case UpdateConversation(ref, peers, seconds):
            return f"update {ref} for {' '.join(peers or ())}{'' if seconds is None else f' {seconds:g} s'}"
        case OpenExchange(ref, client, None, 300.0, reason, second, None):
            return f"exchange {ref} {client}{'' if second is None else f'+{second}'} {reason}"
        case UpdateExchange(ref, server, second, seconds):
            pair = f"+{second}" if second is not None else ""
            return f"serves {ref} {server}{pair}{'' if seconds is None else f' {seconds:g} s'}"
        case FindSocket(ref, target):
            return f"find {ref} {target}"
        case Probe(ref, target, _, expect):
            return f"prove {ref} {target}{'' if expect else ' by listening'}"
        case OpenMapping(ref, target, ("tcp", "udp"), None, seconds, _, port) if port == target.port:
            return f"map {ref} {target} {seconds:g} s"
        case UpdateMapping(ref, None, float(seconds)):
            return f"renew {ref} {seconds:g} s"
        case OpenOutbound(ref, target, "tcp", seconds, reason) if seconds == ttl:
            return f"out {ref} {target} {reason}"
        case OpenRelay(client, server, "ftp.convert"):
            return f"relay {client} {server}"
        case AskTransfer(ref, other):
            return f"ask {ref} {other}"
        case OpenMeeting(ref, 60.0, "ftp.convert"):
            return f"meet {ref}"
        case ClosePinhole(ref):
            return f"shut {ref}"
        case CloseWrite(to):
            return f"close {to}"
        case Revoke(rule):
            return f"revoke {rule}"
        case Note(code, _):
            return f"note {code}"
        case Bypass():
            return "bypass"
    return repr(command)


def pieces(event: Event, cut: Cut) -> Iterator[Event]:
    if isinstance(event, Received):
        for data in cut(event.data):
            yield Received(event.side, data, event.now)
    else:
        yield event


def run(path: Path, kind: Kind, cut: Cut) -> None:
    """Play the file, with each piece of data cut so; AssertionError where the module answers something else."""
    dialogue = read(path, kind)
    module = kind.module(dialogue.context)
    bypassed = False
    for step in dialogue.steps:
        assert not bypassed, f"{path.name}:{step.number}: nothing may follow a bypass"
        commands: list[Command] = []
        for event in pieces(step.event, cut):
            if bypassed and isinstance(event, Received):  # the driver's; shown as if it had come in one piece
                behind = 1 if isinstance(commands[-2], Deliver) else 2
                commands.insert(len(commands) - behind, Deliver(event.side.other, event.data))
            if not bypassed:
                commands += module.handle(event)
            bypassed = any(isinstance(command, Bypass) for command in commands)
        assert shown(commands, kind.ttl) == step.expected, f"{path.name}:{step.number}"


def as_written(path: Path, kind: Kind) -> None:
    """Play the file in pieces as they stand there."""
    run(path, kind, lambda data: [data])


def byte_by_byte(path: Path, kind: Kind) -> None:
    """Play the file with each byte by itself."""
    run(path, kind, lambda data: [data[at : at + 1] for at in range(len(data))])


def cut_in_two(path: Path, kind: Kind, step: int = 1) -> None:
    """Play the file again and again, with each piece cut in two at another place."""
    said = [step.event.data for step in read(path, kind).steps if isinstance(step.event, Received)]
    for place in range(1, max(map(len, said), default=0), step):
        run(path, kind, lambda data, at=place: [piece for piece in (data[:at], data[at:]) if piece])  # type: ignore[misc]

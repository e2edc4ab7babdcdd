"""Runs every dialogue of this folder, and of tests/wire/field/ftp, against the FTP module. The format is described in
tests/wire/README.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.api import (
    AskTransfer,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FlowContext,
    Note,
    Opened,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    Received,
    Refused,
    Revoke,
    Say,
    Side,
    Tick,
    apply_edits,
)
from alg.ftp.options import FtpOptions
from alg.ftp.session import FtpModule

FIELD = Path(__file__).parents[1] / "field" / "ftp"
FILES = sorted([*Path(__file__).parent.glob("*.dialogue"), *FIELD.glob("*.dialogue")])
Cut = Callable[[bytes], list[bytes]]


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


def endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint.of(host.strip("[]"), int(port))


def read(path: Path) -> Dialogue:
    context = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 21))
    steps: list[Step] = []
    now, latest = 0.0, b""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark, _, text = line.partition(" ")
        word, _, rest = text.partition(" ")
        try:
            if mark == "flow":
                context = replace(context, client=endpoint(word), server=endpoint(rest.strip()))
            elif mark == "published":
                context = replace(context, inside=Side.SERVER)
            elif mark == "transfers":
                context = replace(context, transfers=True)
            elif mark == "options":
                pairs = dict(pair.split("=") for pair in text.split())
                context = replace(context, options=FtpOptions(**pairs))  # type: ignore[arg-type]
            elif mark == "<<":
                if word in ("client", "server"):
                    text = f"{word} {latest if rest == '=' else unescape(rest)!r}"
                steps[-1].expected.append(text)
            elif mark == ">>":
                if word == "tick":
                    now = float(rest)
                event = read_event(word, rest, now)
                if isinstance(event, Received):
                    latest = event.data
                steps.append(Step(number, event))
            else:
                raise ValueError(f"unknown mark {mark!r}")
        except (ValueError, KeyError, IndexError) as error:
            raise AssertionError(f"{path.name}:{number}: {error}") from error
    return Dialogue(context, steps)


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


def shown(commands: list[Command]) -> list[str]:
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
            lines.append(words(command))
    return lines


def words(command: Command) -> str:
    match command:
        case OpenPinhole(ref, target, peer, "tcp", 60.0, reason):
            return f"open {ref} {target} for {peer} {reason}"
        case OpenOutbound(ref, target, "tcp", 60.0, reason):
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


def run(path: Path, cut: Cut) -> None:
    dialogue = read(path)
    module = FtpModule(dialogue.context)
    bypassed = False
    for step in dialogue.steps:
        assert not bypassed, f"{path.name}:{step.number}: nothing may follow a bypass"
        commands: list[Command] = []
        for event in pieces(step.event, cut):
            if bypassed and isinstance(event, Received):  # the driver's; shown as if it had come in one piece
                commands.insert(len(commands) - 2, Deliver(event.side.other, event.data))
            if not bypassed:
                commands += module.handle(event)
            bypassed = any(isinstance(command, Bypass) for command in commands)
        assert shown(commands) == step.expected, f"{path.name}:{step.number}"


def test_there_is_a_corpus() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", sorted(FIELD.glob("*.dialogue")), ids=lambda path: path.stem)
def test_what_is_of_the_field_says_whose_it_is_and_what_is_right(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# source: ")
    assert second.startswith("# right: ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_as_written(path: Path) -> None:
    run(path, lambda data: [data])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_byte_by_byte(path: Path) -> None:
    run(path, lambda data: [data[at : at + 1] for at in range(len(data))])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cut_in_two_at_every_place(path: Path) -> None:
    longest = max(len(step.event.data) for step in read(path).steps if isinstance(step.event, Received))
    for place in range(1, longest):
        run(path, lambda data, at=place: [piece for piece in (data[:at], data[at:]) if piece])  # type: ignore[misc]

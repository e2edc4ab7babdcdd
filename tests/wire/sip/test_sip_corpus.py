"""Runs every dialogue of this folder against the engine of SIP over UDP. The format: tests/wire/sip/README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.api import (
    Activity,
    ClosePinhole,
    Note,
    OpenConversation,
    Opened,
    OpenMapping,
    Probe,
    Refused,
    Side,
    Tick,
    UpdateConversation,
    UpdateMapping,
    apply_edits,
)
from alg.datagrams import (
    Datagram,
    DatagramCommand,
    DatagramContext,
    DatagramEvent,
    Release,
    RevokeConversation,
    StandDown,
)
from alg.sip.options import SipOptions
from alg.sip.udp import SipEngine

FILES = sorted(Path(__file__).parent.glob("*.dialogue"))
HEADER = re.compile(r"([A-Za-z-]+)\s*:")


@dataclass
class Step:
    """An event of a dialogue, where it stands, and what must come of it (without the edits' diffs)."""

    number: int
    event: DatagramEvent
    expected: list[str] = field(default_factory=list)


@dataclass
class Expected:
    """The lines that change in a packet: those that go, and those that come instead."""

    packet: int
    old: list[list[str]] = field(default_factory=list)
    new: list[list[str]] = field(default_factory=list)


@dataclass
class Dialogue:
    options: SipOptions
    steps: list[Step]
    edits: dict[int, Expected]
    packets: dict[int, bytes]
    fixed: tuple[Endpoint, Endpoint] | None = None


def endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint.of(host.strip("[]"), int(port))


def expand(line: str) -> list[str]:
    """`sdp HOST KIND PORT[, KIND PORT]...` is a description with these m= lines; any other line is itself."""
    if not line.startswith("sdp "):
        return [line]
    _, host, media = line.split(" ", 2)
    family = "IP6" if ":" in host else "IP4"
    lines = ["v=0", f"o=- 1 1 IN {family} {host}", "s=-", f"c=IN {family} {host}", "t=0 0"]
    for part in media.split(", "):
        kind, port = part.split()
        lines.append(f"m={kind} {port} {'udptl t38' if kind == 'image' else 'RTP/AVP 0'}")
    return lines


class Reader:
    """Reads one file."""

    def __init__(self, path: Path) -> None:
        self._lines = path.read_text().splitlines()
        self._at = 0
        self._now = 0.0
        self._latest: dict[Side, tuple[str, str]] = {}  # the latest request of a side: its method and CSeq
        self._call = "call-1"
        self._client = Endpoint("192.168.56.10", 5060)
        self._server = Endpoint("203.0.113.5", 5060)
        self.dialogue = Dialogue(SipOptions(), [], {}, {})

    def read(self) -> Dialogue:
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip()
            self._at += 1
            if line and not line.startswith("#"):
                try:
                    self._line(line)
                except (ValueError, KeyError, IndexError) as error:
                    raise AssertionError(f"line {self._at}: {error}") from error
        return self.dialogue

    def _line(self, line: str) -> None:
        mark, _, text = line.partition(" ")
        word, _, rest = text.partition(" ")
        match mark:
            case "client":
                self._client = endpoint(text)
            case "server":
                self._server = endpoint(text)
            case "call":
                self._call = text
            case "fixed":
                self.dialogue.fixed = self._client, endpoint(text)
            case "options":
                name, _, value = text.partition("=")
                known: dict[str, object] = {
                    "media_source": value,
                    "stand_down": tuple(value.split(",")),
                    "rate": int(value) if value.isdigit() else 0,
                    "media_timeout": float(value) if value.isdigit() else 0.0,
                    "hold_timeout": float(value) if value.isdigit() else 0.0,
                }
                self.dialogue.options = SipOptions(**{name: known[name]})  # type: ignore[arg-type]
            case ">>":
                event = self._event(word, rest)
                self.dialogue.steps.append(Step(self._at, event))
            case "<<":
                self.dialogue.steps[-1].expected.append(text)
                if word == "edit":
                    self._diff(int(rest))
            case _:
                raise ValueError(f"unknown mark {mark!r}")

    def _event(self, word: str, rest: str) -> DatagramEvent:
        first, _, second = rest.partition(" ")
        match word:
            case "client" | "server":
                side = Side(word)
                number = len(self.dialogue.packets) + 1
                block = self._block()
                data = rest.encode() if rest else self._message(side, block)
                self.dialogue.packets[number] = data
                return Datagram(number, side, self._client, self._server, data, self._now)
            case "opened":
                return Opened(int(first), endpoint(second), self._now)
            case "refused":
                return Refused(int(first), second, self._now)
            case "tick":
                self._now = float(rest)
                return Tick(self._now)
            case "activity":
                packets_in, packets_out = second.split()
                return Activity(int(first), int(packets_in), int(packets_out), self._now)
        raise ValueError(f"unknown event {word!r}")

    def _block(self) -> list[str]:
        """The indented lines that follow; an empty line among them stays one."""
        block = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line.startswith("  ") and not (line == "" and self._more()):
                break
            block += expand(line[2:])
            self._at += 1
        return block

    def _more(self) -> bool:
        return self._at + 1 < len(self._lines) and self._lines[self._at + 1].startswith("  ")

    def _message(self, side: Side, block: list[str]) -> bytes:
        end = block.index("") if "" in block else len(block)
        head, body = block[:end], "".join(line + "\r\n" for line in block[end + 1 :])
        there = {match[1].lower() for line in head[1:] if (match := HEADER.match(line))}
        response = head[0].startswith("SIP/2.0")
        if response:
            method, cseq = self._latest[side.other]
        else:
            method, cseq = head[0].split()[0], "1"
        for line in head[1:]:
            if line.lower().startswith("cseq:"):
                cseq, method = line.split(":")[1].split()
        if not response:
            self._latest[side] = method, cseq
        mine = (side is Side.CLIENT) is not response
        caller, callee = (
            ("<sip:alice@example.com>", "<sip:bob@example.com>")
            if mine
            else ("<sip:bob@example.com>", "<sip:alice@example.com>")
        )
        if method == "REGISTER":
            callee = caller
        near, far = (";tag=near", ";tag=far") if mine else (";tag=far", ";tag=near")
        early = not response and method in ("INVITE", "REGISTER", "OPTIONS", "SUBSCRIBE", "CANCEL")
        sent_by = "phone.invalid" if side is Side.CLIENT and not response else "203.0.113.5"
        filled = {
            "via": f"Via: SIP/2.0/UDP {sent_by};branch=z9hG4bK{method}{cseq}",
            "from": f"From: {caller}{near}",
            "to": f"To: {callee}{'' if early else far}",
            "call-id": f"Call-ID: {self._call}",
            "cseq": f"CSeq: {cseq} {method}",
        }
        head += [line for name, line in filled.items() if name not in there]
        if body and "content-type" not in there and "c" not in there:
            head.append("Content-Type: application/sdp")
        if "content-length" not in there and "l" not in there:
            head.append(f"Content-Length: {len(body)}")
        return ("".join(line + "\r\n" for line in head) + "\r\n" + body).encode()

    def _diff(self, packet: int) -> None:
        expected = self.dialogue.edits[packet] = Expected(packet)
        before = "+"
        while self._at < len(self._lines) and self._lines[self._at].startswith(("  - ", "  + ")):
            sign, line = self._lines[self._at][2], self._lines[self._at][4:]
            lists = expected.old if sign == "-" else expected.new
            if sign == "-" and before == "+":
                expected.old.append([])
                expected.new.append([])
            lists[-1] += expand(line)
            before = sign
            self._at += 1


def changed(data: bytes, expected: Expected) -> bytes:
    """`data` with the lines of `expected` replaced, once each, and Content-Length following."""
    body = len(data.split(b"\r\n\r\n", 1)[1])
    for old, new in zip(expected.old, expected.new, strict=True):
        before, after = (b"".join(line.encode() + b"\r\n" for line in lines) for lines in (old, new))
        assert data.count(before) == 1, f"{old} is not in packet {expected.packet} once"
        data = data.replace(before, after)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.replace(b"Content-Length: %d" % body, b"Content-Length: %d" % len(rest)) + b"\r\n\r\n" + rest


def who(peers: tuple[str, ...] | None) -> str:
    return "any" if peers is None else ",".join(peers) or "nobody"


def words(command: DatagramCommand, dialogue: Dialogue) -> str:
    match command:
        case Release(packet, ()):
            return f"pass {packet}"
        case Release(packet, edits):
            if packet in dialogue.edits:
                data = dialogue.packets[packet]
                assert apply_edits(data, edits) == changed(data, dialogue.edits[packet])
            return f"edit {packet}"
        case OpenConversation(ref, target, second, peers, _, reason):
            beside = f"+{second}" if second is not None else ""
            return f"open {ref} {target}{beside} for {who(peers)} {reason}"
        case UpdateConversation(ref, peers, _):
            return f"update {ref} for {who(peers)}"
        case ClosePinhole(ref):
            return f"shut {ref}"
        case OpenMapping() | UpdateMapping() | Probe():
            raise AssertionError(f"SIP asks for no {type(command).__name__}")
        case StandDown(_, server, rule):
            return f"stand-down {server} {rule}"
        case RevokeConversation(_, server, rule):
            return f"revoke {server} {rule}"
        case Note(code, _):
            return f"note {code}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path: Path) -> None:
    dialogue = Reader(path).read()
    engine = SipEngine(DatagramContext(dialogue.options, fixed=dialogue.fixed))
    for step in dialogue.steps:
        shown = [words(command, dialogue) for command in engine.handle(step.event)]
        assert shown == step.expected, f"{path.name}:{step.number}"


def test_there_is_a_corpus() -> None:
    assert len(FILES) > 20

"""Runs every dialogue of this folder against the engine of SIP over UDP. The format: tests/wire/sip/README.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alg.api import Side, apply_edits
from alg.sip.options import SipOptions
from alg.sip.udp import SipEngine
from tests.wire import script
from tests.wire.datagrams import DatagramPlayer
from tests.wire.script import Line

FILES = sorted(Path(__file__).parent.glob("*.dialogue"))
HEADER = re.compile(r"([A-Za-z-]+)\s*:")


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


class SipPlayer(DatagramPlayer):
    """SIP over UDP: what a message leaves out is filled in, and an edit is written as the lines that change."""

    def __init__(self) -> None:
        super().__init__(SipEngine, 5060)
        self._call = "call-1"
        self._latest: dict[Side, tuple[str, str]] = {}  # the latest request of a side: its method and CSeq

    def set(self, word: str, rest: str) -> None:
        if word == "call":
            self._call = rest
        else:
            super().set(word, rest)

    def options(self, name: str, value: str) -> SipOptions:
        known: dict[str, object] = {
            "media_source": value,
            "stand_down": tuple(value.split(",")),
            "rate": int(value) if value.isdigit() else 0,
            "media_timeout": float(value) if value.isdigit() else 0.0,
            "hold_timeout": float(value) if value.isdigit() else 0.0,
        }
        return SipOptions(**{name: known[name]})  # type: ignore[arg-type]

    def data(self, side: Side, event: Line) -> bytes:
        lines = [line for written in event.block for line in expand(written)]
        return event.rest.encode() if event.rest else self._message(side, lines)

    def wanted(self, line: Line) -> str:
        if line.word == "edit" and line.block:
            packet = int(line.rest)
            data = self.packets[packet]
            assert packet in self.edits, f"packet {packet} has not gone on"
            assert apply_edits(data, self.edits[packet]) == changed(data, line.block)
        return line.text

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


def changed(data: bytes, diff: list[str]) -> bytes:
    """`data` with the lines of `diff` that begin with "-" replaced, once each, by those with "+" behind them, and
    Content-Length following."""
    body = len(data.split(b"\r\n\r\n", 1)[1])
    replaced: list[tuple[list[str], list[str]]] = []
    before = "+"
    for written in diff:
        sign, line = written[0], written[2:]
        if sign == "-" and before == "+":
            replaced.append(([], []))
        replaced[-1][sign == "+"].extend(expand(line))
        before = sign
    for pair in replaced:
        old, new = (b"".join(line.encode() + b"\r\n" for line in lines) for lines in pair)
        assert data.count(old) == 1, f"{pair[0]} is not there once"
        data = data.replace(old, new)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.replace(b"Content-Length: %d" % body, b"Content-Length: %d" % len(rest)) + b"\r\n\r\n" + rest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path: Path) -> None:
    script.play(path, SipPlayer())


def test_there_is_a_corpus() -> None:
    assert len(FILES) > 20

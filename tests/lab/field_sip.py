"""What phones, cameras and servers of the field say (tests/wire/field/sip): the files, read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from alg.api import Side

FOLDER = Path(__file__).parents[1] / "wire" / "field" / "sip"
FILES = sorted(FOLDER.glob("*.sip"))
ESCAPE = re.compile(rb"\\(n|r|t|0|-|\\|x[0-9a-f]{2})")
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"0": b"\0", b"-": b"", b"\\": b"\\"}


@dataclass
class Said:
    """A message: who says it, what is right of it, and its lines."""

    side: Side
    right: str
    lines: list[str] = field(default_factory=list)

    def bytes(self, words: dict[str, str], end: bytes) -> bytes:
        """What is on the wire where `words` are said."""
        while self.lines and not self.lines[-1] and "" in self.lines[:-1] and not self.lines[-2]:
            self.lines.pop()
        split = self.lines.index("") if "" in self.lines else len(self.lines)
        body = b"".join(_line(line, words, end) for line in self.lines[split + 1 :])
        words = {**words, "length": str(len(body))}
        head = b"".join(_line(line, words, end) for line in self.lines[: split + 1])
        return head + body


def _line(line: str, words: dict[str, str], end: bytes) -> bytes:
    for word, text in words.items():
        line = line.replace("{" + word + "}", text)
    ends = end
    if line.endswith((r"\n", r"\-")):
        ends = b""
    return (
        ESCAPE.sub(
            lambda match: ESCAPES.get(match[1]) or (b"" if match[1] == b"-" else bytes([int(match[1][1:], 16)])),
            line.encode(),
        )
        + ends
    )


class Field:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.about: dict[str, str] = {}
        self.said: list[Said] = []
        for line in path.read_text().splitlines():
            if line.startswith(">> "):
                side, _, right = line[3:].partition(" ")
                self.said.append(Said(Side(side), right or self.about["right"]))
            elif self.said:
                self.said[-1].lines.append(line)
            elif line:
                key, _, value = line.partition(": ")
                self.about[key] = value
        for said in self.said[:-1]:
            if len(said.lines) > 1 and not said.lines[-1]:
                said.lines.pop()  # the blank line before the next one
        self.end = b"\n" if self.about.get("lines") == "lf" else b"\r\n"

    def goes_over(self, transport: str) -> bool:
        return self.about.get("transport", transport) == transport

    def came_and_goes(self, said: Said, inside: dict[str, str], outside: dict[str, str]) -> tuple[bytes, bytes]:
        """What the side says, and what the other one must hear. `inside`, `outside`: what the words stand for there."""
        near, far = said.bytes(inside, self.end), said.bytes(outside, self.end)
        came, goes = (near, far) if said.side is Side.CLIENT else (far, near)
        return (came, goes) if said.right == "edited" else (came, came)

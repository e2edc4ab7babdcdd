"""Reads dialogues and plays them, whatever protocol is spoken in them.

A file consists of settings (`client 192.168.56.10:5060`), of what happens (`>> opened 1 203.0.113.1:40000`) and of what
must come of it (`<< pass 1`). Lines that are indented by two blanks belong to the line above them. `#` begins a
comment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from alg.address import Endpoint

HAPPENS, ANSWER = ">>", "<<"


@dataclass
class Line:
    """A line without its mark: its number in the file, its text, and the indented lines below it."""

    number: int
    text: str
    block: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        return self.text.partition(" ")[0]

    @property
    def rest(self) -> str:
        return self.text.partition(" ")[2]


@dataclass
class Step:
    """What happens, and what must come of it."""

    event: Line
    expected: list[Line] = field(default_factory=list)


class Player(Protocol):
    """Plays the dialogues of one protocol. Each method may raise ValueError, KeyError or IndexError for what it does
    not understand."""

    def set(self, word: str, rest: str) -> None:
        """Take a setting."""

    def happens(self, event: Line) -> list[str]:
        """Let something happen, and return what has come of it, in the words of the corpus."""

    def wanted(self, line: Line) -> str:
        """Return what must have come of the latest event, as `happens` words it. AssertionError where the block of
        the line says something else."""


def endpoint(text: str) -> Endpoint:
    """Return `203.0.113.1:40000` or `[2001:db8::1]:40000` as an endpoint."""
    host, _, port = text.rpartition(":")
    return Endpoint.of(host.strip("[]"), int(port))


def read(path: Path) -> list[Line | Step]:
    """Return the settings and the steps of a file, in order."""
    found: list[Line | Step] = []
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        text, number = lines[at], at + 1
        at += 1
        if not text.strip() or text.startswith("#"):
            continue
        block = list(_block(lines, at))
        at += len(block)
        mark, _, rest = text.partition(" ")
        block = [line[2:] for line in block]
        if mark == HAPPENS:
            found.append(Step(Line(number, rest, block)))
        elif mark == ANSWER:
            assert found, f"{path.name}:{number}: nothing has happened yet"
            latest = found[-1]
            assert isinstance(latest, Step), f"{path.name}:{number}: an answer to a setting"
            latest.expected.append(Line(number, rest, block))
        else:
            found.append(Line(number, text.rstrip(), block))
    return found


def _block(lines: list[str], at: int) -> Iterator[str]:
    """The indented lines from here on; an empty line among them is one of them."""
    while at < len(lines):
        is_between = lines[at] == "" and at + 1 < len(lines) and lines[at + 1].startswith("  ")
        if not lines[at].startswith("  ") and not is_between:
            return
        yield lines[at]
        at += 1


def play(path: Path, player: Player) -> None:
    """Play a file. AssertionError, with the place, where something else comes of a step."""
    for part in read(path):
        line = part.event if isinstance(part, Step) else part
        where = f"{path.name}:{line.number}"
        try:
            if isinstance(part, Line):
                player.set(part.word, part.rest)
                continue
            shown = player.happens(part.event)
            wanted = [player.wanted(line) for line in part.expected]
        except (ValueError, KeyError, IndexError) as error:
            raise AssertionError(f"{where}: {error}") from error
        assert shown == wanted, where

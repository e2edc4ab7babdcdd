"""The dialogues in this folder, each as written: README.md says how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.api import Activity, ClosePinhole, Note, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.datagrams import Datagram, DatagramCommand, DatagramContext, DatagramEvent, Release
from alg.tftp.module import REASON, TftpModule

FILES = sorted(Path(__file__).parent.glob("*.dialogue"))


def endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint.of(host.strip("[]"), int(port))


def unescape(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def said(command: DatagramCommand, now: float) -> str:
    """The command as a dialogue has it."""
    match command:
        case Release(packet, ()):
            return f"pass {packet}"
        case OpenConversation(ref, target, None, peers, 30.0, reason) if reason == REASON:
            return f"open {ref} {target} for {' '.join(peers or ())}"
        case UpdateConversation(ref, peers, ttl):
            until = "kept" if ttl is None else f"until {now + ttl:g}"
            return f"update {ref} for {' '.join(peers or ())} {until}"
        case ClosePinhole(ref):
            return f"shut {ref}"
        case Note(code, _):
            return f"note {code}"
    raise AssertionError(command)


class Play:
    """One file, line by line."""

    def __init__(self) -> None:
        self.client, self.server = Endpoint("192.168.56.10", 2070), Endpoint("203.0.113.5", 69)
        self.fixed: Endpoint | None = None
        self.module: TftpModule | None = None
        self.now, self.packets = 0.0, 0

    def set(self, word: str, rest: str) -> None:
        if word == "client":
            self.client = endpoint(rest)
        elif word == "server":
            self.server = endpoint(rest)
        else:
            assert (word, self.module) == ("fixed", None)
            self.fixed = endpoint(rest)

    def event(self, text: str) -> DatagramEvent:
        word, _, rest = text.partition(" ")
        words = rest.split()
        match word:
            case "client" | "server":
                self.packets += 1
                return Datagram(self.packets, Side(word), self.client, self.server, unescape(rest), self.now)
            case "opened":
                return Opened(int(words[0]), endpoint(words[1]), self.now)
            case "refused":
                return Refused(int(words[0]), words[1], self.now)
            case "activity":
                return Activity(int(words[0]), int(words[1]), int(words[2]), self.now)
            case "tick":
                self.now = float(rest)
                return Tick(self.now)
        raise AssertionError(text)

    def happens(self, text: str) -> list[str]:
        if self.module is None:
            fixed = (self.client, self.fixed) if self.fixed else None
            self.module = TftpModule(DatagramContext(fixed=fixed))
        return [said(command, self.now) for command in self.module.handle(self.event(text))]


def exchanges(text: str) -> Iterator[tuple[str, list[str]]]:
    """What happens, or is set, with what must be answered."""
    current: tuple[str, list[str]] | None = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("<< "):
            assert current is not None, line
            current[1].append(line[3:])
            continue
        if current is not None:
            yield current
        current = line, []
    if current is not None:
        yield current


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_dialogue(file: Path) -> None:
    play = Play()
    for line, wanted in exchanges(file.read_text()):
        if line.startswith(">> "):
            assert play.happens(line[3:]) == wanted, line
        else:
            word, _, rest = line.partition(" ")
            play.set(word, rest)


def test_there_are_dialogues() -> None:
    assert len(FILES) > 20

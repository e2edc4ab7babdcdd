"""The dialogues in this folder, each as written: README.md says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.address import Endpoint
from alg.api import OpenConversation, Side, UpdateConversation
from alg.datagrams import DatagramCommand
from alg.tftp.module import REASON, TftpModule
from tests.wire import script
from tests.wire.datagrams import DatagramPlayer
from tests.wire.script import Line

FILES = sorted(Path(__file__).parent.glob("*.dialogue"))


class TftpPlayer(DatagramPlayer):
    """TFTP: datagrams are written with escapes, and each conversation has its time."""

    def __init__(self) -> None:
        super().__init__(TftpModule, 69)
        self.client = Endpoint("192.168.56.10", 2070)

    def data(self, side: Side, event: Line) -> bytes:
        return event.rest.encode().decode("unicode_escape").encode("latin-1")

    def words(self, command: DatagramCommand) -> str:
        match command:
            case OpenConversation(ref, target, None, peers, 30.0, reason) if reason == REASON:
                return f"open {ref} {target} for {' '.join(peers or ())}"
            case UpdateConversation(ref, peers, ttl):
                until = "kept" if ttl is None else f"until {self.now + ttl:g}"
                return f"update {ref} for {' '.join(peers or ())} {until}"
        words = super().words(command)
        assert not words.startswith(("edit", "open")), command
        return words


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_dialogue(file: Path) -> None:
    script.play(file, TftpPlayer())


def test_there_are_dialogues() -> None:
    assert len(FILES) > 20

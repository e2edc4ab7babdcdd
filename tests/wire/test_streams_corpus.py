"""Runs the dialogues of each folder against its module. The format is described in tests/wire/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.bittorrent.http import BittorrentModule
from alg.irc.module import IrcModule
from alg.rtsp.module import RtspModule
from tests.wire import dialogue
from tests.wire.dialogue import Kind

KINDS = {
    "bittorrent": Kind(BittorrentModule, 6969),
    "irc": Kind(IrcModule, 6667, 180.0),
    "rtsp": Kind(RtspModule, 554),
}
LEAST = {"bittorrent": 25, "irc": 40, "rtsp": 60}
FILES = sorted(path for name in KINDS for path in Path(__file__).parent.glob(f"{name}/*.dialogue"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")


def test_there_is_a_corpus() -> None:
    for name, least in LEAST.items():
        assert sum(path.parent.name == name for path in FILES) > least, name


@each
def test_as_written(path: Path) -> None:
    dialogue.as_written(path, KINDS[path.parent.name])


@each
def test_byte_by_byte(path: Path) -> None:
    dialogue.byte_by_byte(path, KINDS[path.parent.name])


@each
def test_cut_in_two_at_every_place(path: Path) -> None:
    dialogue.cut_in_two(path, KINDS[path.parent.name])

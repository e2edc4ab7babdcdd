"""Runs every dialogue of this folder against the IRC module. The format is described in tests/wire/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.irc.module import IrcModule
from tests.wire import dialogue
from tests.wire.dialogue import Kind

IRC = Kind(IrcModule, 6667, 180.0)
FILES = sorted(Path(__file__).parent.glob("*.dialogue"))


def test_there_is_a_corpus() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_as_written(path: Path) -> None:
    dialogue.as_written(path, IRC)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_byte_by_byte(path: Path) -> None:
    dialogue.byte_by_byte(path, IRC)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cut_in_two_at_every_place(path: Path) -> None:
    dialogue.cut_in_two(path, IRC)

"""Runs every dialogue of this folder, and of tests/wire/field/ftp, against the FTP module. The format is described in
tests/wire/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from alg.ftp.session import FtpModule
from tests.wire import dialogue
from tests.wire.dialogue import Kind

FTP = Kind(FtpModule, 21)
FIELD = Path(__file__).parents[1] / "field" / "ftp"
FILES = sorted([*Path(__file__).parent.glob("*.dialogue"), *FIELD.glob("*.dialogue")])


def test_there_is_a_corpus() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", sorted(FIELD.glob("*.dialogue")), ids=lambda path: path.stem)
def test_what_is_of_the_field_says_whose_it_is_and_what_is_right(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# source: ")
    assert second.startswith("# right: ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_as_written(path: Path) -> None:
    dialogue.as_written(path, FTP)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_byte_by_byte(path: Path) -> None:
    dialogue.byte_by_byte(path, FTP)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cut_in_two_at_every_place(path: Path) -> None:
    dialogue.cut_in_two(path, FTP)

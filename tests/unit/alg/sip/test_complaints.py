"""The table of complaints in docs/protocols/sip.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs/protocols/sip.md"
TABLE = PAGE.read_text().partition("\n| complaint | tests |\n")[2].partition("\n\n")[0]
ROWS = [re.findall(r"`([^` ]+\.(?:dialogue|scenario|py)[^`]*)`", line) for line in TABLE.splitlines()[1:]]


def test_there_is_a_table() -> None:
    assert len(ROWS) >= 22
    assert all(ROWS), "a complaint without a test"


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in row}))
def test_it_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    if name.endswith(".dialogue"):
        assert (ROOT / "tests/wire/sip" / name).exists()
    elif name.endswith(".scenario"):
        assert (ROOT / "tests/net/sip" / name).exists()
    else:
        (found,) = (ROOT / "tests").glob(f"**/{file}")
        assert f"def {function}(" in found.read_text()

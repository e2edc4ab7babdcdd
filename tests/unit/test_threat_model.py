"""docs/threat-model.md names a test for each attack, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "threat-model.md"
FUNCTIONS = {
    path: frozenset(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)) for path in TESTS.rglob("test_*.py")
}
DIALOGUES = {path.stem for path in (TESTS / "wire").rglob("*.dialogue")}


def rows() -> list[tuple[str, str]]:
    """What is in the first and last cell of the tables whose last column says what shows it."""
    found: list[tuple[str, str]] = []
    within = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            within = False
        elif cells[-1] == "Shown by":
            within = True
        elif within and set(cells[-1]) - set("-:"):
            found.append((cells[0], cells[-1]))
    return found


def exists(name: str) -> bool:
    """Whether there is a test of this name: FILE, FILE::FUNCTION, FUNCTION, a folder, or a dialogue of the corpus."""
    file, _, function = name.partition("::")
    if not function and file.startswith("test_") and not file.endswith(".py"):
        return any(file in functions for functions in FUNCTIONS.values())
    if file.endswith(".py"):
        paths = [path for path in FUNCTIONS if path.as_posix().endswith(f"/{file}")]
        return any(not function or function in FUNCTIONS[path] for path in paths)
    return (TESTS / file).is_dir() or Path(file).name in DIALOGUES


ROWS = rows()


def test_there_are_attacks() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize(("attack", "shown"), ROWS, ids=[attack[:40] for attack, _ in ROWS])
def test_what_shows_the_defence_is_there(attack: str, shown: str) -> None:
    names = re.findall(r"`([^`]+)`", shown)
    assert names or shown.startswith("the same"), f"no test is named: {attack}"
    assert [name for name in names if not exists(name)] == []

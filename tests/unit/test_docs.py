"""The site of docs/ can be built: no link leads nowhere, no page is forgotten. Its pictures are as the code is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed: make docs")
def test_the_site_builds_strictly_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text()
        assert '<script src="http' not in text, page
        assert "fonts.g" + "oogleapis" not in text, page
    assert "diagrams/ways.svg" in (tmp_path / "index.html").read_text()


DECISIONS = {path.name[:4]: path for path in (ROOT / "docs/decisions").glob("[0-9]*.md")}


@pytest.mark.parametrize("path", DECISIONS.values(), ids=DECISIONS.keys())
def test_a_decision_has_its_parts(path: Path) -> None:
    """A status, a date and a topic; what was decided, why, and what was rejected."""
    heading, _, rest = path.read_text().partition("\n")
    assert re.search(r"^Topic: ", rest, re.MULTILINE)
    for part in ("Decision", "Reasons", "What was rejected"):
        assert re.search(rf"^## {part}", rest, re.MULTILINE), part
    assert heading.startswith("# ")
    assert re.search(r"Status\W+(accepted|proposed|replaced)", rest[:300])
    assert re.search(r"20\d\d-\d\d-\d\d", rest[:600])


def test_decisions_are_few() -> None:
    """One for each topic that is decided: a refinement belongs into the file that it refines."""
    assert len(DECISIONS) <= 32


def test_the_list_of_decisions_is_that_of_their_headings() -> None:
    spec = importlib.util.spec_from_file_location("decisions", ROOT / "docs/decisions.py")
    assert spec is not None
    assert spec.loader is not None
    decisions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decisions)
    assert decisions.INDEX.read_text() == decisions.text(), "run python docs/decisions.py"


def test_every_decision_that_is_named_somewhere_exists() -> None:
    files = [
        path
        for folder in ("alg", "gateway", "tests", "docs", "iptables")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".nft", ".rules", ".toml")
    ]
    missing = [
        (str(path.relative_to(ROOT)), number)
        for path in files
        for number in re.findall(r"decisions?[ /](0\d{3})\b", path.read_text())
        if number not in DECISIONS
    ]
    assert not missing


def test_the_map_of_the_rooms_is_as_the_imports_are() -> None:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert rooms.TARGET.read_text() == rooms.draw(), "python docs/rooms.py draws it anew"

"""The corpus: what `algate check` says about each configuration here (see README.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alg.registry import options_by_name
from gateway.cli.main import main

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_check_says(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    expected = path.read_text().splitlines()[-1]
    assert re.match(r"#! FILE:\d+:", expected), "the last line is what check says, and on which line the mistake is"
    monkeypatch.setattr("sys.argv", ["algate", "check", "-c", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    wanted = expected.removeprefix("#! ").replace("MODULES", ", ".join(sorted(options_by_name())))
    message = said.err.removeprefix("algate: ").replace(str(path), "FILE", 1).rstrip("\n")
    assert message == wanted


def test_there_are_enough() -> None:
    assert len(FILES) >= 30

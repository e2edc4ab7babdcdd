"""The corpus: each `#?` line of each configuration here (see README.md)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from alg.address import canonical
from gateway.cli.explain import parse_question
from gateway.config.load import load_config
from gateway.config.rules import policy_of

HERE = Path(__file__).parent
_LINE = re.compile(
    r"#\? (?P<question>.*?)(?: is (?P<own>own )?(?P<address>\S+))? = (?P<word>permit|deny) (?P<rule>\S+)"
)


def cases() -> Iterator[object]:
    for path in sorted(HERE.glob("*.toml")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("#?"):
                yield pytest.param(path, line, id=f"{path.stem}:{number}")


@pytest.mark.parametrize(("path", "line"), list(cases()))
def test_what_is_decided(path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)  # for the names of access files
    found = _LINE.fullmatch(line)
    assert found, f"{path.name}: {line!r} is not as README.md has it"
    question = parse_question(found["question"])
    config = load_config(path)
    address = ipaddress.ip_address(found["address"] or question.request.host)
    own = canonical(address) if found["own"] else None
    at = question.at
    policy = policy_of(config, (lambda: at) if at else None, lambda address: address == own)
    is_mapping = question.request.command == "map"
    decision = policy.decide_mapping(question.request) if is_mapping else policy.judge(question.request).at(address)
    assert policy.explain(question.request, address).decision == decision
    assert ("permit" if decision.permit else "deny", decision.rule) == (found["word"], found["rule"])

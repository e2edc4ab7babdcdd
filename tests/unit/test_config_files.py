"""Several files of one configuration, where its keys stand, and what a valid one can hardly mean."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.cli.main import main
from gateway.config.doubts import doubts
from gateway.config.load import load_config, parse_config
from gateway.config.places import lines_of
from gateway.config.rules import compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.model.errors import ConfigError
from gateway.policy.rules import Prefix, Query, covers, why_not
from tests.unit.policy.rulesets import NAMES, PATTERNS, request, section, some, target

RULE = '[[rule]]\naction = "permit"\nto = ["192.0.2.1"]\n'


def files(folder: Path, **texts: str) -> Path:
    """algate.toml from `main`, conf.d/NAME.toml from the others; the path of the first."""
    (folder / "conf.d").mkdir()
    for name, text in texts.items():
        (folder / ("algate.toml" if name == "main" else f"conf.d/{name}.toml")).write_text(text)
    return folder / "algate.toml"


def test_later_files_add_and_override_and_append(tmp_path: Path) -> None:
    main_file = files(
        tmp_path,
        main='[network]\ninside = ["10.0.0.0/8"]\n[socks]\nlisten = ["127.0.0.1:1080"]\n' + RULE,
        a='[socks]\nlisten = ["127.0.0.1:1081"]\nbind_timeout = 7\n',
        b='[pinhole]\nper_client = 9\n[[rule]]\naction = "deny"\n',
    )
    config = load_config(main_file)
    assert config.socks.listen == ("127.0.0.1:1081",)
    assert (config.socks.bind_timeout, config.pinhole.per_client) == (7, 9)
    assert config.network.inside == ("10.0.0.0/8",)
    assert [rule.action for rule in config.rule] == ["permit", "deny"]
    assert config.loaded.places["rule[1]"] == f"{tmp_path}/conf.d/b.toml:3"


@pytest.mark.parametrize(
    ("second", "where", "what"),
    [
        ("[socks]\nlisten = [1]", "conf.d/b.toml:2", "socks.listen[0]: expected text"),
        ("[[rule]]\naction = 'permit'\nport = ['x']", "conf.d/b.toml:3", "rule[1].port[0]: 'x' is not a port"),
        ("[socks", "conf.d/b.toml:1:7", "Expected ']'"),
    ],
)
def test_an_error_names_the_file_of_its_key(tmp_path: Path, second: str, where: str, what: str) -> None:
    main_file = files(tmp_path, main=RULE, b=second)
    with pytest.raises(ConfigError) as caught:
        load_config(main_file)
    assert str(caught.value).startswith(f"{tmp_path}/{where}: {what}")


def test_the_file_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(tmp_path, main="[pinhole]\nper_client = 11\n")
    monkeypatch.setenv("ALGATE_CONFIG", str(path))
    monkeypatch.setattr("sys.argv", ["algate", "check"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "per_client = 11" in capsys.readouterr().out


VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.text("ab\"'\\#[]{},=\n é", max_size=8), st.booleans()),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3)


@given(st.dictionaries(st.sampled_from(["x", "y", "z"]), st.one_of(TABLES, st.lists(TABLES, min_size=1, max_size=3))))
def test_every_key_is_found_on_the_line_on_which_it_stands(document: dict[str, object]) -> None:
    text = "# a comment with [a] = 1\n" + tomli_w.dumps(document, multiline_strings=True)
    found = lines_of(text)
    lines = text.split("\n")
    for name, value in document.items():
        if isinstance(value, list) and f"[[{name}]]" not in text:
            continue  # written as a list of inline tables, whose keys have the line of the list
        tables = {name: value} if isinstance(value, dict) else {f"{name}[{i}]": table for i, table in enumerate(value)}  # type: ignore[arg-type,var-annotated]
        for path, table in tables.items():
            for key in table:
                assert lines[found[f"{path}.{key}"] - 1].startswith(f"{key} = "), (path, key, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[[rule]]\naction = "permit"\n[[rule]]\naction = "deny"\nto = ["192.0.2.0/24"]',
            "rule[1]: never decides: rule[0]",
        ),
        (
            '[[rule]]\naction = "deny"\nport = ["1-100"]\n[[rule]]\naction = "permit"\nport = [80]',
            "rule[1]: never decides",
        ),
        ('[[rule]]\naction = "permit"\nuser = ["ann"]', "rule[0].user: never matches"),
        ('[socks]\nlisten = ["127.0.0.1:41080"]', "socks.listen[0]: its port is one of pinhole.ports"),
        ('[[rule]]\naction = "permit"\ngroup = ["staff"]', "rule[0].group: never matches"),
        ('[network]\ninside = ["10.0.0.0/8", "0.0.0.0/0"]', "network.inside[1]: 0.0.0.0/0 is everybody"),
    ],
)
def test_what_can_hardly_be_meant_is_told(text: str, said: str) -> None:
    assert [doubt[: len(said)] for doubt in doubts(parse_config(text, "f.toml"))] == [said]


@pytest.mark.parametrize(
    "text",
    [
        RULE + '[[rule]]\naction = "deny"',
        '[[rule]]\naction = "permit"\n[[rule]]\naction = "permit"\nto = ["127.0.0.1"]',  # a protected address, by name
        '[[rule]]\naction = "deny"\ntime = "Mo-Fr"\n[[rule]]\naction = "permit"',
        '[[rule]]\naction = "permit"\nident = true\nuser = ["ann"]',
        '[[rule]]\naction = "permit"\n[[rule]]\naction = "deny"\ncommand = ["fxp"]',
    ],
)
def test_what_can_be_meant_is_not(text: str) -> None:
    assert list(doubts(parse_config(text, "f.toml"))) == []


LOOPBACK = Prefix.of(ipaddress.ip_network("127.0.0.0/8"))


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_a_covered_rule_never_decides(seed: int) -> None:
    chance = random.Random(seed)
    first = compile_rule(replace(section(chance), ident=False), "first", "")
    if chance.random() < 0.7:  # most pairs of random rules have nothing to do with each other
        first = compile_rule(
            RuleSection(action=chance.choice(("permit", "deny")), to=some(chance, PATTERNS)), "first", ""
        )
    later = compile_rule(section(chance), "later", "")
    if not covers(first, later):
        return
    for _ in range(30):
        asked = request(chance)
        address = target(chance)
        name = asked.host if asked.host in NAMES else None
        query = Query(
            asked.command, asked.client.ip, name, asked.port, asked.user, asked.groups, chance.randrange(7 * 24 * 60)
        )
        protected = LOOPBACK if LOOPBACK.contains(address) else None
        if why_not(later, query, address, protected) is None and why_not(first, query, address, protected) is not None:
            # Only a protected address, which a permission for everywhere leaves out and the later rule denies as well.
            assert first.permit
            assert not later.permit
            assert protected is not None

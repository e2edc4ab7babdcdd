"""What is written from the code is what is committed, complete, and right."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.cli.main import cli
from gateway.cli.reference.__main__ import DOCS, documents, shared_files
from gateway.cli.reference.commands import CommandHelp, commands
from gateway.cli.reference.configuration import example, tables
from gateway.cli.reference.events import logged
from gateway.cli.reference.manual import pages
from gateway.config.load import load_config, parse_config
from gateway.observe.events import EVENTS

COMMANDS = list(commands())


@pytest.mark.parametrize("name", documents())
def test_the_committed_reference_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == documents()[name], "run `make docs`"


def test_every_key_says_what_it_means() -> None:
    keys = [key for table in tables() for key in table.keys]
    assert len(keys) > 70
    assert [f"{key.path}.{key.name}" for key in keys if not key.description] == []
    assert [table.path for table in tables() if not table.description] == []


def test_every_key_that_check_prints_is_in_the_reference() -> None:
    printed = tomllib.loads(load_config().to_toml())
    known = {table.path: {key.name for key in table.keys} for table in tables()}
    sections = {name: section for name, section in printed.items() if isinstance(section, dict) and name != "alg"}
    sections |= {f"alg.{name}": section for name, section in printed["alg"].items()}
    for name, section in sections.items():
        assert {key for key, value in section.items() if not isinstance(value, dict)} <= known[name]


def test_the_example_sets_nothing() -> None:
    nothing = parse_config("", "nothing")
    assert replace(parse_config(example(), "example"), loaded=nothing.loaded) == nothing


def test_the_example_loads_with_every_key_set() -> None:
    """But those that name files of the machine, and in an order that TOML wants."""
    text = re.sub(r"(?m)^#(?=\[\[|\w+ = )", "", example())
    text = re.sub(
        r"(?m)^(access_file|password_file|chain|user = \"ann\"|ca = |server_name|certificate = \".*office).*\n",
        "",
        text,
    )
    text = text.replace("inside = []", 'inside = ["192.168.56.0/24"]')
    config = parse_config(text, "example")
    assert config.rule[0].via == ("office",)
    assert config.published
    document = tomllib.loads(re.sub(r"(?m)^#(?=\[\[|\w+ = )", "", example()))
    assert document["socks"]["access_file"] == "/etc/sockd.conf"
    for table in tables():
        section: Any = document
        for part in table.path.split("."):
            section = section[part]
        found = section[0] if isinstance(section, list) else section
        assert {key.name for key in table.keys} <= found.keys()


def test_every_event_of_the_code_is_in_the_table_and_the_other_way_round() -> None:
    assert set(EVENTS) == set(logged())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_says_what_it_does_and_shows_an_example_that_parses(command: CommandHelp) -> None:
    assert command.summary.endswith(".")
    assert len(command.summary) <= 45 or command.name == "algate", "the list of commands would cut it off"
    assert command.examples
    for line in command.examples:
        parts = [part for part in re.split(r" \| | > |<\(|\)$", line) if command.name in part]
        assert parts, line
        words = shlex.split(parts[0])
        options = {name for names, _ in command.options for name in re.findall(r"--?[a-z]+", names)}
        assert {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} <= options | {"--help", "--"}, line
    assert all(meaning for _, meaning in command.options)


def test_help_shows_the_example() -> None:
    for command in COMMANDS:
        target = cli
        context = cli.make_context("algate", [], resilient_parsing=True)
        for word in command.name.split()[1:]:
            target = target.get_command(context, word)  # type: ignore[assignment]
            context = target.make_context(word, [], parent=context, resilient_parsing=True)
        assert command.examples[0] in target.get_help(context)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", ["algate.1", "algate-check.1", "algate-rules-show.1", "algate.toml.5"])
def test_manual_pages_are_clean(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou"], input=pages()[name], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert "NAME" in done.stdout
    assert "EXAMPLES" in done.stdout or name.endswith("5")


def test_a_package_installs_a_page_for_each_command_and_completions() -> None:
    files = shared_files()
    assert {f"man/man1/{command.page}.1" for command in COMMANDS} < files.keys()
    assert "man/man5/algate.toml.5" in files
    assert sum("completions" in name for name in files) == 3

"""Manual pages, in the language of man(7): algate(1), algate-COMMAND(1) and algate.toml(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway import __version__
from gateway.cli.main import EXIT_CODES
from gateway.cli.reference.commands import CommandHelp, commands
from gateway.cli.reference.configuration import ConfigurationKey, Table, tables, toml_value

_FILES = (
    ("/etc/algate/algate.toml", "The configuration; see algate.toml(5)."),
    ("/run/algate/", "Sockets of the running gateway, by which these commands ask it."),
)


def pages() -> dict[str, str]:
    """Return all manual pages, by file name."""
    every = list(commands())
    texts = {f"{command.page}.1": "\n".join(_command_page(command, every)) + "\n" for command in every}
    texts["algate.toml.5"] = "\n".join(_configuration_page()) + "\n"
    return texts


def _command_page(command: CommandHelp, every: list[CommandHelp]) -> Iterator[str]:
    yield from _head(command.page, 1, command.summary.rstrip("."))
    yield ".SH SYNOPSIS"
    yield f".B {_escape(command.name)}"
    yield _escape(command.usage)
    yield ".SH DESCRIPTION"
    yield _escape(command.summary)
    for paragraph in command.prose:
        yield ".PP"
        yield _text(paragraph)
    if command.commands:
        yield ".SH COMMANDS"
        for name, summary in command.commands:
            yield from _item(f"\\fB{_escape(command.page)}-{_escape(name)}\\fR(1)", summary)
    yield ".SH OPTIONS"
    for names, meaning in command.options:
        yield from _item(f"\\fB{_escape(names)}\\fR", meaning)
    if command.examples:
        yield ".SH EXAMPLES"
        yield from _verbatim(command.examples)
    yield ".SH EXIT STATUS"
    for number, meaning in EXIT_CODES.items():
        yield from _item(str(number), meaning)
    yield ".SH FILES"
    for path, meaning in _FILES:
        yield from _item(f"\\fI{_escape(path)}\\fR", meaning)
    yield ".SH SEE ALSO"
    others = [candidate.page for candidate in every if candidate.name.count(" ") < 2 and candidate.page != command.page]
    yield ", ".join(f"\\fB{_escape(page)}\\fR(1)" for page in others) + ", \\fBalgate.toml\\fR(5)"


def _configuration_page() -> Iterator[str]:
    yield from _head("algate.toml", 5, "configuration of algate")
    yield ".SH DESCRIPTION"
    yield _text(
        "A TOML document. `algate check` validates it and prints what is in effect. An unknown key, a wrong type or a "
        "value that makes no sense is an error. Every key has a default unless it is required."
    )
    for table in tables():
        yield f".SH {_escape(table.header)}"
        yield _text(table.description)
        for key in table.keys:
            yield from _key(table, key)
    yield ".SH FILES"
    yield from _item(
        "\\fI/etc/algate/algate.toml\\fR", "Where it is looked for, unless a command says otherwise by -c."
    )
    yield ".SH SEE ALSO"
    yield "\\fBalgate\\fR(1), \\fBalgate\\-check\\fR(1)"


def _key(table: Table, key: ConfigurationKey) -> Iterator[str]:
    default = "required" if key.required else f"default: {toml_value(key.default)}"
    yield from _item(f"\\fB{_escape(key.name)}\\fR", key.description)
    yield ".br"
    yield _text(f"{key.kind[0].upper()}{key.kind[1:]}; {default}.")
    if key.example is not None:
        yield ".br"
        yield _text(f"Example: {key.name} = {toml_value(key.example)}")


def _head(name: str, section: int, summary: str) -> Iterator[str]:
    yield f'.TH {_escape(name.upper())} {section} "" "algate {_escape(__version__)}" "algate"'
    yield ".SH NAME"
    yield f"{_escape(name)} \\- {_escape(summary[0].lower() + summary[1:])}"


def _item(term: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield _text(meaning)


def _verbatim(lines: tuple[str, ...]) -> Iterator[str]:
    yield ".nf"
    yield from map(_escape, lines)
    yield ".fi"


def _text(text: str) -> str:
    """Format prose, with `code` in bold."""
    return re.sub(r"`([^`]*)`", r"\\fB\1\\fR", _escape(text))


def _escape(text: str) -> str:
    """Escape characters that man(7) interprets, and commands at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped

"""The commands as click knows them, as Markdown. `manual.py` makes the manual pages from the same."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import click

from gateway.cli.main import EXIT_CODES, cli
from gateway.cli.reference.configuration import GENERATED, code

_UNWRAPPED = "\b\n"  # how click marks a paragraph whose lines stay as they are


@dataclass(frozen=True)
class CommandHelp:
    """One command: its full name, its help text, its arguments and options."""

    name: str  # "algate rules show"
    usage: str  # "[OPTIONS] FILE"
    summary: str
    prose: tuple[str, ...]  # paragraphs
    examples: tuple[str, ...]  # lines
    options: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]  # those below it, with their summaries

    @property
    def page(self) -> str:
        """The name of the command's manual page, without the section."""
        return self.name.replace(" ", "-")


def commands(
    command: click.Command = cli, name: str = "algate", parent: click.Context | None = None
) -> Iterator[CommandHelp]:
    """Return a command and all its subcommands, each command before its subcommands."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    summary, *paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    examples: list[str] = []
    prose: list[str] = []
    for paragraph in paragraphs:
        if paragraph.startswith(_UNWRAPPED):
            examples += [line.strip() for line in paragraph.removeprefix(_UNWRAPPED).splitlines()[1:]]
        else:
            prose.append(" ".join(paragraph.split()))
    below = below_of(command, context)
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    records = [option.get_help_record(context) for option in options]
    yield CommandHelp(
        context.command_path,
        " ".join(command.collect_usage_pieces(context)),
        " ".join(summary.split()),
        tuple(prose),
        tuple(examples),
        tuple(record for record in records if record),
        tuple((name, _summary(command)) for name, command in below.items()),
    )
    for name, command in below.items():
        yield from commands(command, name, context)


def below_of(command: click.Command, context: click.Context) -> dict[str, click.Command]:
    """Return the subcommands of a command, by their names."""
    if not isinstance(command, click.Group):
        return {}
    names = command.list_commands(context)
    return {name: found for name in names if (found := command.get_command(context, name)) is not None}


def _summary(command: click.Command) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


_INTRODUCTION = """\
# Commands

`algate COMMAND --help` says the same, and so do the manual pages (`man algate-check`). Tables have colour on a
terminal, unless NO_COLOR is set; a pipe gets plain text. With `--json` a command prints one array of objects, with
moments in UTC (RFC 3339) as in the log. An error is one line on standard error.

`algate completion bash|zsh|fish` prints what a shell needs to complete commands and options.

| exit code | meaning |
| --- | --- |
"""


def markdown() -> str:
    """Return docs/reference/commands.md."""
    parts = [GENERATED.format(source="the commands of gateway/cli"), _INTRODUCTION]
    parts += [f"| {number} | {meaning} |\n" for number, meaning in EXIT_CODES.items()]
    for command in commands():
        parts.append(f"\n## {command.name}\n\n`{command.name} {command.usage}`\n\n{command.summary}\n")
        parts += [f"\n{code(paragraph)}\n" for paragraph in command.prose]
        if command.examples:
            parts.append("\n" + "".join(f"    {line}\n" for line in command.examples))
        if command.commands:
            parts.append("\n| command | |\n| --- | --- |\n")
            parts += [f"| [`{name}`](#{command.page}-{name}) | {summary} |\n" for name, summary in command.commands]
        parts.append("\n| option | |\n| --- | --- |\n")
        parts += [f"| `{names}` | {_cell(meaning)} |\n" for names, meaning in command.options]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

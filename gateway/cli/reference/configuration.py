"""The reference of the configuration, read from its structs: as Markdown, and as a commented example."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from alg.registry import Declared, declared
from gateway.config.schema import Config

# In what order they stand, as a reader needs them; a table that is not named here (process) comes last.
ORDER = (
    "network",
    "socks",
    "transparent",
    "pinhole",
    "alg",
    "rule",
    "upstream",
    "publish",
    "forward",
    "portmap",
    "dns",
    "log",
    "console",
)
_HIDDEN = {"loaded", "options"}  # not of the file


@dataclasses.dataclass(frozen=True)
class ConfigurationKey:
    """One key. `path` is the path of its table, `default` is None where the key is required, `kind` is its type in
    words."""

    path: str
    name: str
    kind: str
    default: object
    required: bool
    description: str
    example: object

    @property
    def shown(self) -> object:
        """The value that the example file shows: the default, or an example if the default is empty."""
        return self.default if self.default not in (None, (), [], "") or self.example is None else self.example


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the file; `repeated` for a list of tables."""

    path: str
    repeated: bool
    description: str
    keys: tuple[ConfigurationKey, ...]

    @property
    def header(self) -> str:
        return f"[[{self.path}]]" if self.repeated else f"[{self.path}]"


def tables() -> list[Table]:
    """Return all tables, including those of the installed protocol modules, in the order in which they are
    documented."""
    found = [table for name, kind in _fields(Config) if name not in _HIDDEN for table in _of(name, kind)]
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda table: places.get(table.path.partition(".")[0], len(ORDER)))


def _fields(struct: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        yield field.encode_name, hints[field.name]


def _of(path: str, kind: Any) -> Iterator[Table]:
    """Yield the table of a struct and the tables within it; for `alg` one for each module."""
    if path == "alg":
        for name, module in sorted(declared().items(), key=lambda item: (not item[1].is_ours, item[0])):
            yield _module_table(name, module, get_args(kind)[1])
        return
    repeated = get_origin(kind) is tuple
    struct = get_args(kind)[0] if repeated else kind
    yield Table(path, repeated, _prose(struct), tuple(_keys(path, struct)))
    for name, inner in _fields(struct):
        if _is_struct(inner):
            yield from _of(f"{path}.{name}", inner)


def _module_table(name: str, module: Declared, common: type) -> Table:
    path = f"alg.{name}"
    section = common(mode=module.mode, ports=module.ports, transports=module.transports)
    keys = [
        dataclasses.replace(key, default=msgspec.to_builtins(getattr(section, key.name))) for key in _keys(path, common)
    ]
    if module.options is not None:
        hints = get_type_hints(module.options)
        for field in dataclasses.fields(module.options):
            examples = field.metadata.get("examples", [None])
            description = field.metadata.get("description", "")
            kind = _words(hints[field.name])
            default = msgspec.to_builtins(field.default)
            keys.append(ConfigurationKey(path, field.name, kind, default, False, description, examples[0]))
    return Table(path, False, f"The protocol module {name} (docs/protocols/{name}.md).", tuple(keys))


def _keys(path: str, struct: type) -> Iterator[ConfigurationKey]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        if field.encode_name in _HIDDEN or _is_struct(kind):
            continue
        meta = next((m for m in getattr(kind, "__metadata__", ()) if isinstance(m, msgspec.Meta)), msgspec.Meta())
        default = None if field.required else msgspec.to_builtins(field.default)
        example = meta.examples[0] if meta.examples else None
        description = meta.description or ""
        yield ConfigurationKey(path, field.encode_name, _words(kind), default, field.required, description, example)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _prose(struct: type) -> str:
    return " ".join((inspect.getdoc(struct) or "").split())


def _words(kind: Any) -> str:
    """Return the type of a key in words: "text", "a list of whole numbers", "`tcp` or `udp`"."""
    if hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    if get_origin(kind) is Literal:
        return _choice([str(value) for value in get_args(kind) if value != ""])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice([str(member.value) for member in kind])
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        plain = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}
        return f"a list of {plain.get(_words(inner), _words(inner))}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in names:
        return names[kind]
    return " or ".join(_words(part) for part in get_args(kind))


def _choice(values: list[str]) -> str:
    quoted = [f'"{value}"' for value in values]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def toml_value(value: object) -> str:
    """Return a value as TOML, in one line."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


# --- Markdown ------------------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# Configuration

TOML, in `/etc/algate/algate.toml` or wherever `-c FILE` says. `algate check` validates it and prints what is in effect.
An unknown key, a wrong type or a value that makes no sense is an error that names the file, the line and the key, and
the exit code is 2. So is what this host does not have: a users file, a keytab, an account. What is valid and can hardly
be meant, as a rule that never decides, is told as a warning. Every key has a default unless it says *required*; with no
file at all, algate is a SOCKS server on 127.0.0.1:1080 for clients of the same machine.

The files `conf.d/*.toml` beside the configuration file are read after it, in the order of their names: a table adds to
that of the earlier files, a key that is set again is taken from the later file, and `[[tables]]` are appended. Without
`-c` the environment variable `ALGATE_CONFIG` names the file.

[algate.toml.example](algate.toml.example) has every key with a comment. A protocol module of another package may bring
further tables, `[alg.NAME]`.
"""


def markdown() -> str:
    """Return docs/reference/configuration.md."""
    parts = [GENERATED.format(source="the structs of gateway/config/schema.py"), _INTRODUCTION]
    for table in tables():
        parts.append(f"\n## {table.header}\n\n{links(table.description)}\n")
        parts.append("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        for key in table.keys:
            default = "*required*" if key.required else f"`{toml_value(key.default)}`"
            example = f" For example `{toml_value(key.example)}`." if key.example is not None else ""
            meaning = links(code(key.description)) + example
            parts.append(f"| `{key.name}` | {code(key.kind)} | {default} | {meaning} |\n")
    return "".join(parts)


GENERATED = "<!-- Written by `make docs` from {source}: change it there. -->\n\n"


def code(text: str) -> str:
    """Turn quoted words into code."""
    return re.sub(r'("[^"]*"|\[\])', r"`\1`", text)


def links(text: str) -> str:
    """Turn `docs/x.md` into a link that works in docs/reference/."""
    return re.sub(r"docs/(\S+?\.md)", r"[\1](../\1)", text)


# --- the example -----------------------------------------------------------------------------------------------------

_HEAD = """\
# /etc/algate/algate.toml: every key of algate, with its default, or with an example where that is nothing.
# Take off the "#" before a key to set it. `algate check` validates this file and prints what is in effect.
"""


def example() -> str:
    """Return the example file. As it is it sets nothing; without the "#" before its keys it loads too."""
    parts = [_HEAD]
    for table in tables():
        parts.append("\n" + _comment(table.description))
        parts.append(("#" if table.repeated else "") + table.header + "\n")
        for key in table.keys:
            parts.append(_comment(f"{key.description} {_kind_note(key)}".rstrip()))
            parts.append(f"#{key.name} = {toml_value(key.shown)}\n")
    return "".join(parts)


def _kind_note(key: ConfigurationKey) -> str:
    """Return the values that a key may have, if its description does not name them."""
    if '"' not in key.kind or key.description.count('"') >= key.kind.count('"'):
        return ""
    return f"({key.kind.removeprefix('a list of ')})"


def _comment(text: str) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < 115:
            lines[-1] += " " + word
        else:
            lines.append("# " + word)
    return "\n".join(lines) + "\n"

"""The reference of log events: the calls that log, found in the code, beside the meaning of each event."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.cli.reference.configuration import GENERATED
from gateway.observe.events import EVENTS
from gateway.observe.log import KINDS

_ROOT = Path(__file__).parents[2]
_LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
# Keys that come by a mapping, as the code names it.
_SHARED = {
    "flow.names()": "*flow*",
    "request.names()": "*request*",
    "association.dropped": "*a number for each reason*",
    "self._status()": "*those of `algate status --json`*",
}


@dataclass
class Logged:
    """An event as the code logs it: its levels and keys."""

    levels: set[str] = field(default_factory=set)
    keys: dict[str, None] = field(default_factory=dict)


def logged(root: Path = _ROOT) -> dict[str, Logged]:
    """Return all events that the code below `root` logs, by name."""
    found: dict[str, Logged] = {}
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (level := _level(node.func)) and node.args:
                for name in _names(node.args[0]):
                    event = found.setdefault(name, Logged())
                    event.levels.add(level)
                    event.keys.update((key, None) for key in map(_key, node.keywords) if key)
                    if ast.unparse(node.func).startswith("pinhole_log."):
                        event.keys["*pinhole*"] = None
            elif isinstance(node, ast.Dict) and (name := _made_by_hand(node)):
                event = found.setdefault(name, Logged({"warning"}))
                event.keys.update((f"`{ast.literal_eval(key)}`", None) for key in node.keys[1:] if key is not None)
    return found


def _made_by_hand(node: ast.Dict) -> str:
    """Return the event of a literal `{"event": NAME, ...}`, which the log writes about itself; "" for any other
    mapping."""
    match node:
        case ast.Dict(keys=[ast.Constant("event"), *_], values=[ast.Constant(str(name)), *_]) if "." in name:
            return name
    return ""


def _level(function: ast.expr) -> str:
    """Return the level of `log.LEVEL(...)`, `self._log.LEVEL(...)` and `getattr(log, ...)(...)`; "" for any other
    call."""
    if isinstance(function, ast.Attribute) and function.attr in _LEVELS and ast.unparse(function.value).endswith("log"):
        return function.attr
    if isinstance(function, ast.Call) and ast.unparse(function).startswith("getattr(log, "):
        return "as configured"
    return ""


def _names(argument: ast.expr) -> Iterator[str]:
    if isinstance(argument, ast.Constant):
        yield str(argument.value)
    elif isinstance(argument, ast.IfExp):
        yield from _names(argument.body)
        yield from _names(argument.orelse)
    else:
        yield f"({ast.unparse(argument)})"


def _key(keyword: ast.keyword) -> str:
    if keyword.arg is not None:
        return f"`{keyword.arg}`"
    text = ast.unparse(keyword.value)
    return next((words for name, words in _SHARED.items() if text.startswith(name)), "")


_INTRODUCTION = """\
# Events of the log

What a line looks like and where it goes: [the log](../log.md). Names of events and keys are stable; new ones may come.

Every line has `timestamp` (UTC), `level`, `process` and `event`, and those of a class `class`. *flow* stands for the
keys `flow front client server target user rule`, *request* for `client command target user`, *pinhole* for those of
`algate pinholes --json`; what there is not is left out.

| event | level | class | keys | what has happened |
| --- | --- | --- | --- | --- |
"""


def markdown() -> str:
    """Return docs/reference/events.md."""
    kinds = {event: kind for kind, events in KINDS.items() for event in events}
    parts = [GENERATED.format(source="gateway/observe/events.py and the calls that log"), _INTRODUCTION]
    calls = logged()
    for name, meaning in sorted(EVENTS.items()):
        call = calls.get(name, Logged())
        levels, keys = ", ".join(sorted(call.levels)), " ".join(call.keys)
        parts.append(f"| `{name}` | {levels} | {kinds.get(name, '')} | {keys} | {meaning} |\n")
    return "".join(parts)

"""Finds where the keys of a TOML document stand: the line of each key, of each table and of each element of a list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

_T = TypeVar("_T")

_NAME = r"(?:[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*')"
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_TOKEN = re.compile(r'"""|\'\'\'|"|\'|#|[\[\]{},\n]')
_PATH = re.compile(r"[\w-]+(?:\.[\w-]+|\[\d+\])*")


def lines_of(text: str) -> dict[str, int]:
    """Return the line (from 1) of every key of a valid TOML document, by its path such as "rule[0].port[1]".

    Keys of inline tables are not included; the key whose value the inline table is, is included.
    """
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    table, at, line = "", 0, 1
    while at < len(text):
        if header := _HEADER.match(text, at):
            line += text.count("\n", at, header.start(1))
            table = _inside_arrays(_path(header[2]), counts)
            if header[1] == "[[":
                counts[table] += 1
                table = f"{table}[{counts[table] - 1}]"
            found.setdefault(table, line)
            at = _end_of_line(text, header.end())
        elif key := _KEY.match(text, at):
            line += text.count("\n", at, key.start(1))
            path = f"{table}.{_path(key[1])}".removeprefix(".")
            found[path] = line
            at = key.end()
            for index, start in _elements(text, at):
                found[f"{path}[{index}]"] = line + text.count("\n", key.start(1), start)
            end = _end_of_value(text, at)
            line += text.count("\n", key.start(1), end)
            at = end
        else:
            newline = text.find("\n", at)
            at = len(text) if newline < 0 else newline + 1
            line += newline >= 0
    return found


def line_of(found: Mapping[str, _T], path: str) -> _T | None:
    """Return the line of a path, or of the nearest part of it that has one. `found` is the result of `lines_of`, or has
    other values in place of lines. Of an array of tables it is the line of the first one."""
    part = nearest(found, path)
    return None if part is None else found[part]


def nearest(found: Mapping[str, _T], path: str) -> str | None:
    """Return the path of which `line_of` gives the line."""
    while path:
        for name in (path, f"{path}[0]"):  # of [[tables]] the first one
            if name in found:
                return name
        path = re.sub(r"(\.?[\w-]+|\[\d+\])$", "", path)
    return None


def path_in(message: str) -> str:
    """Return the path of the key with which a message begins ("rule[0].port: ..."); "" if there is none."""
    found = _PATH.match(message)
    return found[0] if found else ""


def others_in(message: str) -> list[str]:
    """Return what may be the paths of further keys in a message ("... is taken by socks.listen[0]")."""
    return re.findall(r"\b[a-z]\w*(?:\.[\w-]+|\[\d+\])+", message.partition(":")[2])


def _path(dotted: str) -> str:
    return ".".join(name.strip("\"'") for name in re.findall(_NAME, dotted))


def _inside_arrays(path: str, counts: Counter[str]) -> str:
    """Insert the number of the last element behind each array of tables in the path."""
    parts = path.split(".")
    there = parts[0]
    for name in parts[1:]:
        there = f"{there}[{counts[there] - 1}].{name}" if counts[there] else f"{there}.{name}"
    return there


def _tokens(text: str, at: int) -> Iterator[tuple[str, int]]:
    """Yield the punctuation of a value that begins at `at`, outside strings and comments, with its offset."""
    while found := _TOKEN.search(text, at):
        token, at = found[0], found.end()
        if token == "#":
            at = text.find("\n", at)
            if at < 0:
                return
        elif token in ('"', "'", '"""', "'''"):
            at = _end_of_string(text, at, token)
        else:
            yield token, found.start()


def _end_of_string(text: str, at: int, quote: str) -> int:
    while (end := text.find(quote, at)) >= 0:
        backslashes = len(text[:end]) - len(text[:end].rstrip("\\"))
        if quote[0] == "'" or backslashes % 2 == 0:
            return end + len(quote)
        at = end + 1
    return len(text)


def _end_of_value(text: str, at: int) -> int:
    """Return the offset behind the line on which the value ends."""
    depth = 0
    for token, offset in _tokens(text, at):
        depth += (token in "[{") - (token in "]}")
        if token == "\n" and depth <= 0:
            return offset + 1
    return len(text)


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Yield number and offset of each element of the list that begins at `at`, if a list begins there."""
    if text[at:].lstrip(" \t")[:1] != "[":
        return
    depth = index = 0
    for token, offset in _tokens(text, at):
        depth += (token in "[{") - (token in "]}")
        if depth <= 0:
            return
        if depth == 1 and token in "[,":
            start = re.compile(r"(?:\s|#[^\n]*\n)*").match(text, offset + 1)
            yield index, start.end() if start else offset
            index += 1


def _end_of_line(text: str, at: int) -> int:
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline

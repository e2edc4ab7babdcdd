"""Turns msgspec's messages about wrong values into messages that say what would be right."""

from __future__ import annotations

import re
from difflib import get_close_matches

from msgspec import inspect

# What msgspec calls a type, and what TOML's readers call it.
_NAMES = {
    "array": "a list",
    "object": "a table",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def readable(message: str, kind: type, prefix: str = "") -> str:
    """Return the message of a `msgspec.ValidationError` that converting to `kind` raised, as "KEY: what is wrong".

    "Expected `int`, got `str` - at `$.a.b`" becomes "a.b: expected `int`, got `str`". An unknown key comes with the
    known one that it resembles, a wrong word with the words that are allowed. `prefix`: the key of the whole value.
    """
    text, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$")
    key = (prefix + path).removeprefix(".")
    there = _type_at(inspect.type_info(kind), path)
    said = re.fullmatch(r"(\w+): (.*)", text, re.DOTALL)
    if said and said[1] in _keys(there):  # by the value's own class, of one of its keys
        return f"{key + '.' if key else ''}{said[1]}: {said[2]}"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        hint = resembling(unknown[1], _keys(there)) or _elsewhere(unknown[1], inspect.type_info(kind))
        return f"{key + '.' if key else ''}{unknown[1]}: unknown key{hint}"
    wrong = re.fullmatch(r"Invalid enum value '?(.*?)'?", text)
    if wrong and (words := _words(there)):
        text = f"{wrong[1]!r} is not one of {', '.join(words)}"
    elif found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", text):
        expected, got = (" or ".join(_NAMES.get(word, word) for word in part.split(" | ")) for part in found.groups())
        text = f"expected {expected}, got {'a fraction' if found[2] == 'float' else got}"
        if (found[1], found[2]) == ("array", "object"):
            text += f" (write [[{key}]] for each)"
    elif missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        text = f"the key {missing[1]} is missing"
    else:
        text = text[0].lower() + text[1:]
    return f"{key}: {text}" if key else text


def resembling(word: str, known: list[str]) -> str:
    """Return a hint at the known word that a word resembles, or ""."""
    found = get_close_matches(word, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _elsewhere(key: str, whole: inspect.Type) -> str:
    """Return a hint at the table or the two that have such a key, or ""."""
    assert isinstance(whole, inspect.StructType | inspect.DataclassType)
    tables = [field.encode_name for field in whole.fields if key in _keys(_unwrapped(field.type))]
    return f" (there is {' and '.join(f'{table}.{key}' for table in tables)})" if 1 <= len(tables) <= 2 else ""


def _type_at(there: inspect.Type, path: str) -> inspect.Type | None:
    """Return the type of the value at a path such as `.rule[0].from`; None if it cannot be known."""
    for name, _ in re.findall(r"\.([^.\[]+)|(\[[^\]]*\])", path):
        there = _unwrapped(there)
        if name and isinstance(there, inspect.StructType | inspect.DataclassType):
            fields = [field.type for field in there.fields if field.encode_name == name]
            if not fields:
                return None
            there = fields[0]
        elif not name and isinstance(there, inspect.VarTupleType | inspect.ListType):
            there = there.item_type
        elif not name and isinstance(there, inspect.UnionType):
            items = [t.item_type for t in there.types if isinstance(t, inspect.VarTupleType)]
            if not items:
                return None
            there = items[0]
        else:
            return None
    return _unwrapped(there)


def _unwrapped(there: inspect.Type) -> inspect.Type:
    return _unwrapped(there.type) if isinstance(there, inspect.Metadata) else there


def _keys(there: inspect.Type | None) -> list[str]:
    if isinstance(there, inspect.StructType | inspect.DataclassType):
        return [field.encode_name for field in there.fields]
    return []


def _words(there: inspect.Type | None) -> list[str]:
    if isinstance(there, inspect.LiteralType):
        return [str(value) or '""' for value in there.values]
    if isinstance(there, inspect.EnumType):
        return [str(member.value) for member in there.cls]
    return []

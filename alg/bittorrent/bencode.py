"""Reads one number of a tracker's answer (BEP 3, "bencoding"): how long a client may wait before it announces again."""

from __future__ import annotations

import re

_NUMBER = re.compile(rb"i(-?[0-9]{1,18})e")
_STRING = re.compile(rb"([0-9]{1,9}):")
_DEEPEST = 8  # dictionaries and lists within one another
_INTERVAL = b"interval"


def find_interval(data: bytes) -> int | None:
    """Return the number at the key "interval" of the dictionary that `data` begins with. Returns None if the key is not
    there, or not yet, or if the bytes are not bencoding."""
    if data[:1] != b"d":
        return None
    at, depth = 1, 1
    is_key = True  # in the outermost dictionary: what comes next is a key
    wanted = False  # and the latest key was the one
    while depth and at < len(data):
        if found := _STRING.match(data, at):
            at = found.end() + int(found[1])
            if depth == 1:
                wanted = is_key and data[found.end() : at] == _INTERVAL
        elif found := _NUMBER.match(data, at):
            if wanted and depth == 1:
                return int(found[1])
            at = found.end()
        elif data[at : at + 1] in (b"d", b"l") and depth < _DEEPEST:
            at += 1
            depth += 1
            continue
        elif data[at : at + 1] == b"e":
            at += 1
            depth -= 1
        else:
            return None
        if depth == 1:
            is_key = not is_key
    return None

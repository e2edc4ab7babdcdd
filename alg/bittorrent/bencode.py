"""Reads one number of a tracker's answer (BEP 3, "bencoding"): how long a client may wait before it announces again."""

from __future__ import annotations

import re

_NUMBER = re.compile(rb"i(-?[0-9]{1,18})e")
_STRING = re.compile(rb"([0-9]{1,9}):")
_PART = re.compile(rb"[0-9]{1,9}|i-?[0-9]{0,18}")  # the beginning of a number, or of a string's length
_DEEPEST = 8  # dictionaries and lists within one another
_INTERVAL = b"interval"


class IntervalSearch:
    """Searches for the number at the key "interval" of the dictionary with which an answer begins.

    The answer may come in pieces: what was read is not read again, so that the cost is linear in the bytes however it
    is cut.
    """

    def __init__(self) -> None:
        self._at = 0  # up to where the answer was read
        self._depth = 0
        self._is_key = True  # in the outermost dictionary: what comes next is a key
        self._wanted = False  # and the latest key was the one
        self._over = False  # there is nothing to find any more

    def look(self, data: bytes | bytearray, start: int = 0) -> int | None:
        """Return the number; None: it is not there, or not yet. `data[start:]` is all of the answer that has come, that
        of the calls before included."""
        end = len(data) - start
        while not self._over and self._at < end:
            at = start + self._at
            if not self._depth:
                if data[at : at + 1] != b"d":
                    break
                self._at, self._depth = 1, 1
                continue
            if found := _STRING.match(data, at):
                last = found.end() + int(found[1])
                if self._depth == 1:
                    if int(found[1]) == len(_INTERVAL) and last > len(data):
                        return None  # whether it is the key is not to be told yet
                    self._wanted = self._is_key and data[found.end() : last] == _INTERVAL
                self._at = last - start
            elif found := _NUMBER.match(data, at):
                if self._wanted and self._depth == 1:
                    self._over = True
                    return int(found[1])
                self._at = found.end() - start
            elif data[at : at + 1] in (b"d", b"l") and self._depth < _DEEPEST:
                self._at += 1
                self._depth += 1
                continue
            elif data[at : at + 1] == b"e":
                self._at += 1
                self._depth -= 1
                if not self._depth:
                    break
            elif (part := _PART.match(data, at)) and part.end() == len(data):
                return None  # its end has not come yet
            else:
                break
            if self._depth == 1:
                self._is_key = not self._is_key
        else:
            return None
        self._over = True
        return None

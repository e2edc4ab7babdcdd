"""Header lines, parameters and quoted strings as SIP and RTSP have them (RFC 3261, 25; RFC 7826, 20), over bytes.

A line ends in CR LF, or in LF alone (RFC 2543 allowed it, and some devices still do it). Inside a header value a line
end can only be a fold, so white space is any of blank, tab, CR, LF. The patterns use possessive repetitions, so that
reading takes time in proportion to the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

Span = tuple[int, int]  # from, and up to but without, in the bytes that were read

BLANKS = b" \t\r\n"
WS = rb"[" + BLANKS + rb"]"
S = WS + rb"*+"
TOKEN = rb"[A-Za-z0-9!%'*+.\-_`~]++"
QUOTED = rb'"(?:[^"\\]|\\.)*+"'
HOST = rb"(?:\[[0-9A-Za-z:.%_\-]++\]|[A-Za-z0-9._\-\x80-\xff]++)"
PORT = rb"[0-9]{1,5}+"
# A parameter's name and value may be anything that does not end it; `;;` and a `;` at the end are empty parameters.
_WORD = rb'[^;,="<> \t\r\n]++'
_VALUE = rb"(?:" + QUOTED + rb'|[^;,"<> \t\r\n]*+)'
PARAMS = rb"(?:" + S + rb";(?:" + S + _WORD + rb"(?:" + S + rb"=" + S + _VALUE + rb")?)?)*"
PARAM = re.compile(rb";" + S + rb"(" + _WORD + rb")(?:" + S + rb"=" + S + rb"(" + _VALUE + rb"))?", re.DOTALL)

_LF, _BLANK, _TAB = b"\n \t"
_LOGICAL_LINE = re.compile(rb"[^\n]*+\n(?:[ \t][^\n]*+\n)*+")


_REMEMBERED = 4096  # texts
_SHORT = 256  # bytes: longer ones are read anew, so that a stranger cannot fill the memory

T = TypeVar("T")


class Remembered(Generic[T]):
    """Reads texts by `read`, and remembers its results for short ones: the messages of a dialog repeat most of their
    headers."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read
        self._recall = lru_cache(_REMEMBERED)(read)

    def of(self, text: bytes) -> T:
        """Return what `read` makes of a text. Raises what that raises."""
        return self._recall(text) if len(text) <= _SHORT else self._read(text)


class Malformed(Exception):
    """Bytes that cannot be read, or can be read in more than one way. `reason` says what is wrong, `at` is the
    offset."""

    def __init__(self, reason: str, at: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at


def find_empty_line(data: bytes | bytearray, line_end: int) -> Span | None:
    """Find the first empty line behind the LF at `line_end` or a later one, and return its span. None: there is
    none."""
    plain = data.find(b"\n\r\n", line_end)
    bare = data.find(b"\n\n", line_end, plain + 1 if plain >= 0 else len(data))
    if bare >= 0:
        return bare + 1, bare + 2
    return (plain + 1, plain + 3) if plain >= 0 else None


def read_head(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Read the header lines that begin at `at` (behind a start line). Returns each with its folds and its line end, and
    where the body begins. Raises Malformed where there is no empty line, or a CR that ends no line."""
    plain = data.find(b"\n\r\n", at - 1)
    if plain >= at:
        lines = data[at : plain + 1].splitlines(keepends=True)
        for line in lines:
            # A CR that ends no line, a fold, an empty line of LF alone: what hardly any head has is read below.
            if line[-1] != _LF or line[0] == _BLANK or line[0] == _TAB or len(line) == 1:
                break
        else:
            return lines, plain + 3
    empty = find_empty_line(data, at - 1)
    if empty is None:
        raise Malformed("no end of the head", len(data))
    head = data[at : empty[0]]
    if head.count(b"\r") != head.count(b"\r\n"):
        raise Malformed("a CR that is no end of a line", at + _lone_cr(head))
    if head[:1] in (b" ", b"\t"):
        raise Malformed("a fold behind the start line", at)
    if b"\n " in head or b"\n\t" in head:
        return _LOGICAL_LINE.findall(head), empty[1]
    return head.splitlines(keepends=True), empty[1]


def _lone_cr(head: bytes) -> int:
    at = head.find(b"\r")
    while head[at + 1 : at + 2] == b"\n":
        at = head.find(b"\r", at + 1)
    return at


def find_param(data: bytes, params: Span, name: bytes) -> tuple[bytes, Span] | None:
    """Find the parameter `name` (in lower case). Returns its value and its span; for a parameter without a value b""
    and an empty span."""
    for match in PARAM.finditer(data, *params):
        if match[1].lower() == name:
            if match[2] is None:
                return b"", (match.end(1), match.end(1))
            return match[2], match.span(2)
    return None

"""DCC in lines of IRC (RFC 1459, 2.3.1; CTCP): which line is an offer, where its address and port stand.

A line is read by the grammar from its beginning: what only looks like an offer, in a PONG or behind other words, is
none. Arguments are read from the right, as a file's name may have blanks and digits in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from alg.address import Address
from alg.text.header import Span

LONGEST = 512  # bytes of a line without its tags, CR LF included (RFC 1459, 2.3)
MAY_HOLD = re.compile(rb"\x01DCC ", re.IGNORECASE)

_LINE = re.compile(
    rb"(@[^ \r\n]+ +)?(?::[^ \r\n]+ +)?(?:PRIVMSG|NOTICE) +[^ :\r\n][^ \r\n]* +:"
    rb"\x01DCC ([A-Za-z]+) ([^\x01\r\n]*)\x01 *\r?\n",
    re.IGNORECASE,
)
_FILES = frozenset({b"SEND", b"SSEND", b"TSEND", b"MOVE"})
_CHATS = frozenset({b"CHAT", b"SCHAT", b"VOICE", b"VIDEO", b"WBOARD"})
_RESUMES = frozenset({b"RESUME", b"ACCEPT"})
_WORD = re.compile(rb"[^ ]+")
_NUMBER = re.compile(rb"0|[1-9][0-9]*")
_PORT = re.compile(rb"[1-9][0-9]{3,4}")  # what may be opened is at least 1024


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a line, with its place in it."""

    text: bytes
    span: Span


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to read an offer. The client that receives it connects to `address` and `port`. `address` is None if the
    offer has 0 there, which some clients write for their own address."""

    address: Address | None
    address_word: Word
    port: int
    port_word: Word


@dataclass(frozen=True, slots=True)
class Dcc:
    """A line with exactly one DCC message. `kind`: its type, in capitals; `tags`: the number of bytes of message tags
    before the line itself."""

    kind: bytes
    words: tuple[Word, ...]
    tags: int

    @property
    def is_file(self) -> bool:
        return self.kind in _FILES

    def offers(self) -> Iterator[Offer]:
        """Return the ways to read the message as an offer with a port that may be opened, at most two: with a token and
        without."""
        if not (self.is_file or self.kind in _CHATS):
            return
        behind = 1 if self.is_file else 0  # a size
        for more in (behind, behind + 1):  # a token of a passive offer
            at = len(self.words) - 2 - more
            if at < 1 or not all(_NUMBER.fullmatch(word.text) for word in self.words[at + 2 :]):
                continue
            address, port = self.words[at], self.words[at + 1]
            if not _PORT.fullmatch(port.text) or not 1024 <= int(port.text) <= 65535:
                continue
            try:
                yield Offer(_address(address.text), address, int(port.text), port)
            except ValueError:
                continue

    def resumed(self) -> Iterator[Word]:
        """Return the ways to read the port of a RESUME or ACCEPT."""
        if self.kind not in _RESUMES:
            return
        for at in (len(self.words) - 2, len(self.words) - 3):
            if at >= 1 and all(_NUMBER.fullmatch(word.text) for word in self.words[at + 1 :]):
                word = self.words[at]
                if _PORT.fullmatch(word.text):
                    yield word


def read_dcc(line: bytes) -> Dcc | None:
    """Read the DCC message of a line. Returns None if the line does not have exactly one well-formed message."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    words = tuple(Word(match[0], match.span()) for match in _WORD.finditer(line, *found.span(3)))
    return Dcc(found[2].upper(), words, found.end(1) if found[1] is not None else 0)


def written(address: Address) -> bytes:
    """Return an address as an offer has it: IPv4 as one decimal number, IPv6 as text."""
    return str(int(address) if address.version == 4 else address).encode()


def _address(text: bytes) -> Address | None:
    """Read the address of an offer; None for 0. Raises ValueError if it is not an address."""
    if b":" in text:
        return ipaddress.IPv6Address(text.decode("ascii"))
    if not _NUMBER.fullmatch(text) or len(text) > 10:
        raise ValueError("not a number")
    return ipaddress.IPv4Address(int(text)) if text != b"0" else None

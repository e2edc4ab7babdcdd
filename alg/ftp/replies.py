"""FTP replies (RFC 959, 4.2): which line ends a reply, and which command it answers."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

_REPLY = re.compile(rb"(?m)^([1-5][0-9]{2})([ -]|\r?\n)")
_REPLY_GOES_ON = re.compile(rb"(?m)^([1-5][0-9]{2})(-)")
_END = re.compile(rb"([1-5][0-9]{2})(?: |\r?\n)")
_BEGINNING = re.compile(rb"(?:[1-5]?|[1-5][0-9]{1,2}|[1-5][0-9]{2}[ \r\n-].*)", re.DOTALL)
_SEEN_OF_A_BEGINNING = 8  # bytes; they decide, whatever follows
# Text, with bells and colours of a terminal, and options of Telnet (RFC 959, 2.3: that is what the connection speaks).
_TEXT_BYTES = re.compile(rb"(?:\xff[\xfb-\xfe].|[\a\b\t-\r\x1b\x20-\x7e\x80-\xff])*+", re.DOTALL)
# How a server of another protocol begins: SSH, HTTP, RTSP, POP3, IMAP, VNC.
_FOREIGN_BEGINNING = re.compile(rb"(?:SSH-|HTTP/|RTSP/|\+OK|\* (?:OK|PREAUTH|BYE)|RFB )")
_MOST_TEXT = 4096  # bytes of a reply's earlier lines that are remembered, of those that name an endpoint

MOST_UNANSWERED = 256
"""The greatest number of unanswered commands that mean something to the gateway. No client that needs the gateway has
more; commands that mean nothing are only counted."""


class ReplyTracker:
    """Follows the lines of a server: single-line replies, and multi-line ones from `123-` to `123 `."""

    def __init__(self) -> None:
        self._open: bytes | None = None
        self._text = b""
        self._other_end: int | None = None
        self._several = False

    @property
    def within(self) -> bytes | None:
        """The code of the multi-line reply that has begun and not ended, if there is one."""
        return self._open

    @property
    def text(self) -> bytes:
        """The lines of the current 227 or 229 reply before its last one: their first 4,096 bytes."""
        return self._text

    @property
    def several(self) -> bool:
        """Whether the reply that ended last had several lines."""
        return self._several

    def find(self, lines: bytes, at: int, to: int, awaited: bool = True) -> re.Match[bytes] | None:
        """Find the next of the whole lines `lines[at:to]` that begins or ends a reply: its beginning, with the code and
        the character behind it. Every line before it is text, or (where no reply is `awaited`) a reply of one line."""
        if self._open is not None:
            return _end_of(self._open).search(lines, at, to)
        return (_REPLY if awaited else _REPLY_GOES_ON).search(lines, at, to)

    def pass_text(self, lines: bytes, at: int, end: int) -> None:
        """Take the whole lines `lines[at:end]`, which are text."""
        if self._open is None or at == end:
            return
        if self._open in (b"227", b"229"):
            self._text += lines[at : min(end, at + _MOST_TEXT - len(self._text))]
        found = _END.match(lines, max(at, lines.rfind(b"\n", at, end - 1) + 1), end)
        self._other_end = int(found[1]) if found is not None else None

    def take(self, found: re.Match[bytes]) -> int | None:
        """Take the line that `find` has found. Returns the code of the reply that it ends, or None if it begins a reply
        of several lines."""
        self._several = self._open is not None
        if not self._several:
            self._text = b""
        self._other_end = None
        if found[2] == b"-":  # within a reply of several lines that would be text
            self._open = found[1]
            return None
        self._open = None
        return int(found[1])

    def resume(self) -> int | None:
        """The client sends its next command. If the latest line of a multi-line reply looked like the end of one with
        another code, the client took it for the end; then it was the end, and its code is returned.

        Some servers end replies like this (`553-...`, then `150 ...`); without this, all that follows would be text for
        ever.
        """
        code, self._other_end = self._other_end, None
        if code is not None:
            self._open = None
        return code


@lru_cache(maxsize=512)
def _end_of(code: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?m)^(" + code + rb")( |\r?\n)")


def may_begin_replies(data: bytes) -> bool:
    """False if a stream that begins with `data` does not begin with a reply."""
    return _BEGINNING.fullmatch(data[:_SEEN_OF_A_BEGINNING]) is not None


def may_precede_replies(data: bytes) -> bool:
    """Whether `data` may be text before a greeting, such as a banner of inetd; no other protocol begins like this."""
    return _TEXT_BYTES.fullmatch(data) is not None and _FOREIGN_BEGINNING.match(data) is None


class CommandKind(Enum):
    """Kinds of commands, as far as the gateway tells them apart."""

    OTHER = auto()
    PORT = auto()
    PASV = auto()
    EPSV = auto()
    EPSV_ALL = auto()
    AUTH = auto()


@dataclass(frozen=True, slots=True)
class Sent:
    """A command that was sent to the server. `ref` is the pinhole that was opened for it."""

    kind: CommandKind
    ref: int | None = None


OTHER = Sent(CommandKind.OTHER)
"""A command that means nothing to the gateway."""
# Codes that answer one kind of command and no other; 200 to AUTH is VxWorks'.
_OWN_CODES: dict[int, tuple[CommandKind, ...]] = {
    227: (CommandKind.PASV, CommandKind.EPSV),
    229: (CommandKind.EPSV, CommandKind.PASV),
    234: (CommandKind.AUTH,),
    334: (CommandKind.AUTH,),
}
_OWN_KINDS = frozenset(kind for kinds in _OWN_CODES.values() for kind in kinds)


class Unanswered:
    """The commands that wait for their reply, in order (clients may pipeline).

    Those that mean nothing to the gateway are counted only, so that a flood of them costs nothing.

    Counting alone goes wrong: ABOR may get one reply or two, a blank line one or none. So a code that belongs to one
    kind of command finds that command, and a success that cannot be the answer to a command is not taken for it.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Sent]] = deque()  # and how many others came just before it
        self._since = 0  # how many others came after the last of these
        self._kinds = dict.fromkeys(CommandKind, 0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether more commands wait for their answer than any client needs."""
        return len(self._sent) >= MOST_UNANSWERED

    def add(self, sent: Sent) -> None:
        """Add a command that was sent to the server."""
        self._count += 1
        if sent == OTHER:
            self._since += 1
            return
        self._sent.append((self._since, sent))
        self._since = 0
        self._kinds[sent.kind] += 1

    def add_others(self, count: int) -> None:
        """Add `count` commands that were sent to the server and mean nothing."""
        self._since += count
        self._count += count

    def has(self, kind: CommandKind) -> bool:
        """Whether a command of this kind, which is not OTHER, waits."""
        return self._kinds[kind] > 0

    def expects(self, code: int) -> Sent | None:
        """Return the command that a reply with the code 227 or 229 would answer, as `answer` finds it."""
        for kind in _OWN_CODES[code]:
            for _, sent in self._sent:
                if sent.kind is kind:
                    return sent
        return None

    def is_plain(self, code: int) -> bool:
        """Whether the reply `code` answers no command that means something to the gateway; then `answer` finds OTHER or
        nothing."""
        if code in _OWN_CODES:
            return not self._count
        return code < 200 or not self._sent or self._sent[0][0] > 0

    def answer(self, code: int) -> Sent | None:
        """Return the command that the reply `code` ends, and forget it. None for a preliminary or stray reply."""
        for kind in _OWN_CODES.get(code, ()):
            if self._kinds[kind]:
                return self._pop_through(kind)
        if code in (234, 334) or code < 200 or not self._count:
            return None
        head = OTHER if not self._sent or self._sent[0][0] else self._sent[0][1]
        if head.kind is CommandKind.AUTH and code == 200:
            return self._pop()
        if code < 400 and head.kind in _OWN_KINDS:
            return None
        return self._pop()

    def answer_odd(self, code: int) -> None:
        """Handle a reply that names no endpoint and that the client took for the end of another one: forget the command
        that it answers."""
        if code not in _OWN_CODES:
            self.answer(code)

    def _pop_through(self, kind: CommandKind) -> Sent:
        """Return the first command of this kind, and forget those before it."""
        while True:
            before, sent = self._sent.popleft()
            self._count -= before + 1
            self._kinds[sent.kind] -= 1
            if sent.kind is kind:
                return sent

    def _pop(self) -> Sent:
        self._count -= 1
        if not self._sent:
            self._since -= 1
            return OTHER
        before, sent = self._sent[0]
        if before:
            self._sent[0] = (before - 1, sent)
            return OTHER
        self._sent.popleft()
        self._kinds[sent.kind] -= 1
        return sent

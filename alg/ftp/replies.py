"""FTP replies (RFC 959, 4.2): which line ends one, and which command it answers."""

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
_TEXT_BYTES = re.compile(rb"[\t\r\n\x20-\x7e\x80-\xff]*")
# How a server of another protocol begins: SSH, HTTP, RTSP, POP3, IMAP, VNC.
_FOREIGN_BEGINNING = re.compile(rb"(?:SSH-|HTTP/|RTSP/|\+OK|\* |RFB )")
_MOST_TEXT = 4096  # bytes of a reply's earlier lines that are remembered, of those that name an endpoint

MOST_UNANSWERED = 256
"""Commands without an answer that mean something to the gateway. No client has more and needs the gateway; those
that mean nothing are only counted."""


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
        """What the lines of the present reply before its last one said, of a 227 or 229: its first 4,096 bytes."""
        return self._text

    @property
    def several(self) -> bool:
        """Whether the reply that ended last had several lines."""
        return self._several

    def find(self, lines: bytes, at: int, to: int, awaited: bool = True) -> re.Match[bytes] | None:
        """The next of the whole lines `lines[at:to]` that begins or ends a reply: its beginning, with the code and what
        stands behind it. Every line before it is text, or (where no reply is `awaited`) a reply of one line."""
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
        """Take the line that `find` has found; return the code of the reply that it ends, or None where it begins one
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
        """The client goes on: if the latest line of a multi-line reply looked like the end of one with another code,
        this is what the client took it for. Then that was the end, and its code is returned.

        Some servers end so (`553-...`, then `150 ...`); without this, all that follows would be text for ever.
        """
        code, self._other_end = self._other_end, None
        if code is not None:
            self._open = None
        return code


@lru_cache(maxsize=512)
def _end_of(code: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?m)^(" + code + rb")( |\r?\n)")


def may_begin_replies(data: bytes) -> bool:
    """False where a stream that begins with `data` does not begin with a reply."""
    return _BEGINNING.fullmatch(data[:_SEEN_OF_A_BEGINNING]) is not None


def may_precede_replies(data: bytes) -> bool:
    """Whether `data` may be text that stands before a greeting, as a banner of inetd: no other protocol begins so."""
    return _TEXT_BYTES.fullmatch(data) is not None and _FOREIGN_BEGINNING.match(data) is None


class Kind(Enum):
    """What a command means to the gateway."""

    OTHER = auto()
    PORT = auto()
    PASV = auto()
    EPSV = auto()
    EPSV_ALL = auto()
    AUTH = auto()


@dataclass(frozen=True, slots=True)
class Sent:
    """A command that the server has; `ref` is the pinhole that was opened for it."""

    kind: Kind
    ref: int | None = None


OTHER = Sent(Kind.OTHER)
"""A command that means nothing to the gateway."""
# Codes that answer one kind of command and no other; 200 to AUTH is VxWorks'.
_OWN_CODES: dict[int, tuple[Kind, ...]] = {
    227: (Kind.PASV, Kind.EPSV),
    229: (Kind.EPSV, Kind.PASV),
    234: (Kind.AUTH,),
    334: (Kind.AUTH,),
}
_OWN_KINDS = frozenset(kind for kinds in _OWN_CODES.values() for kind in kinds)


class Unanswered:
    """The commands that wait for their reply, in order (clients may pipeline).

    Those that mean nothing to the gateway are counted only, so that a flood of them costs nothing.

    Counting alone goes wrong: ABOR may get one reply or two, a blank line one or none. So codes that belong to one kind
    of command find that command, and a success that cannot be its answer is not taken for it.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Sent]] = deque()  # and how many others came just before it
        self._since = 0  # how many others came after the last of these
        self._kinds = dict.fromkeys(Kind, 0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether more than anybody needs wait for their answer."""
        return len(self._sent) >= MOST_UNANSWERED

    def add(self, sent: Sent) -> None:
        """A command went to the server."""
        self._count += 1
        if sent == OTHER:
            self._since += 1
            return
        self._sent.append((self._since, sent))
        self._since = 0
        self._kinds[sent.kind] += 1

    def add_others(self, count: int) -> None:
        """So many commands went to the server that mean nothing."""
        self._since += count
        self._count += count

    def has(self, kind: Kind) -> bool:
        """Whether a command of this kind, not OTHER, waits."""
        return self._kinds[kind] > 0

    def expects(self, code: int) -> Sent | None:
        """The command that a reply with the code 227 or 229 would answer, as `answer` finds it."""
        for kind in _OWN_CODES[code]:
            for _, sent in self._sent:
                if sent.kind is kind:
                    return sent
        return None

    def is_plain(self, code: int) -> bool:
        """Whether the reply `code` answers nothing that means something to the gateway; then `answer` finds OTHER or
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
        if head.kind is Kind.AUTH and code == 200:
            return self._pop()
        if code < 400 and head.kind in _OWN_KINDS:
            return None
        return self._pop()

    def answer_odd(self, code: int) -> None:
        """A reply that the client took for one, and that names no endpoint: forget what it ends."""
        if code not in _OWN_CODES:
            self.answer(code)

    def _pop_through(self, kind: Kind) -> Sent:
        """The first of this kind; whatever came before it is forgotten."""
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

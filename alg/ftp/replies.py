"""FTP replies (RFC 959, 4.2): which line ends one, and which command it answers."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

_REPLY_LINE = re.compile(rb"([1-5][0-9]{2})([ -]|\r?\n\Z)")
_BEGINNING = re.compile(rb"(?:[1-5]?|[1-5][0-9]{1,2}|[1-5][0-9]{2}[ \r\n-].*)", re.DOTALL)
# Only so many unanswered commands are remembered; no client pipelines more and needs the gateway.
_MOST_UNANSWERED = 256


class ReplyTracker:
    """Follows the lines of a server: single-line replies, and multi-line ones from `123-` to `123 `."""

    def __init__(self) -> None:
        self._open: bytes | None = None

    @property
    def within(self) -> bytes | None:
        """The code of the multi-line reply that has begun and not ended, if there is one."""
        return self._open

    def feed(self, line: bytes) -> int | None:
        """Take the next whole line; return the code of the reply that it ends, or None where it ends none."""
        found = _REPLY_LINE.match(line)
        if found is None:
            return None
        code, continued = found[1], found[2] == b"-"
        if self._open is None and continued:
            self._open = code
            return None
        # Within a multi-line reply everything is text but its own code without the hyphen.
        if self._open is not None and (continued or code != self._open):
            return None
        self._open = None
        return int(code)


def may_begin_replies(data: bytes) -> bool:
    """False where a stream that begins with `data` does not begin with a reply."""
    return _BEGINNING.fullmatch(data) is not None


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


_OWN_CODE = {227: Kind.PASV, 229: Kind.EPSV, 234: Kind.AUTH, 334: Kind.AUTH}
_OWN_KINDS = frozenset(_OWN_CODE.values())


class Unanswered:
    """The commands that wait for their reply, in order (clients may pipeline).

    Counting alone goes wrong: ABOR may get one reply or two, a blank line one or none. So codes that belong to one
    command only find that command, and a success that cannot be its answer is not taken for it.
    """

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque(maxlen=_MOST_UNANSWERED)

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, sent: Sent) -> None:
        self._sent.append(sent)

    def has(self, kind: Kind) -> bool:
        return any(sent.kind is kind for sent in self._sent)

    def answer(self, code: int) -> Sent | None:
        """Return the command that the reply `code` ends, and forget it. None for a preliminary or stray reply."""
        own = _OWN_CODE.get(code)
        if own is not None:
            if not self.has(own):
                return None
            while (sent := self._sent.popleft()).kind is not own:
                pass
            return sent
        if code < 200 or not self._sent or (code < 400 and self._sent[0].kind in _OWN_KINDS):
            return None
        return self._sent.popleft()

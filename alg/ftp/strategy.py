"""What is asked about a line of a control connection, and what may be answered.

A session reads lines and asks its strategies, in a fixed order, what is to be done with one. The first that has an
answer decides. A strategy is pure and knows nothing of the others; what has been said so far it finds in `Talk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from alg.address import Address, Endpoint
from alg.api import AskTransfer, Command, Edit, Opened, OpenMeeting, OpenOutbound, OpenPinhole
from alg.ftp.commands import FtpCommand
from alg.ftp.options import FtpOptions
from alg.ftp.replies import OTHER, Kind, ReplyTracker, Sent, Unanswered

TTL = 60.0
"""Seconds that a pinhole stays open if nobody comes."""


@dataclass(slots=True)
class Talk:
    """What is known of one control connection. `published`: the server is the side that is inside.

    `greeted`: the server has; `epsv_all`: the client has promised to use nothing but EPSV (RFC 2428, 4); `no_epsv`: the
    server has shown that it does not know EPSV.
    """

    client: Address
    server: Address
    published: bool
    options: FtpOptions
    unanswered: Unanswered
    replies: ReplyTracker
    greeted: bool = False
    epsv_all: bool = False
    no_epsv: bool = False
    latest_ref: int = 0

    def new_ref(self) -> int:
        """A number for a pinhole, or for a command that has to be found again."""
        self.latest_ref += 1
        return self.latest_ref


class Wrong(Exception):
    """What cannot be meant honestly: the session opens no more pinholes. `rule` ("ftp.address") says why."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


class Unclear(Exception):
    """What earns no pinhole, as it cannot be read, but does no harm either: the line passes, the session goes on.
    `rule` is the code of the note."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Pass:
    """The line goes out now, with `edits`. `sent`: of a command, what is remembered of it until its reply comes.

    `before` and `after`: what else is done, before and after it goes out.
    """

    edits: tuple[Edit, ...] = ()
    sent: Sent = OTHER
    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """The line is held back until `question` has its answer; then it goes out with the edits that `opened` makes of it
    (ValueError: it cannot name that endpoint). Without a pinhole it goes out with the edits `otherwise`.

    `before`: what else is done at once. `target`: for the log. `sent` and `sent_otherwise`: of a command, what kind is
    remembered. `refused`: why the session is given up where the answer is no.
    """

    question: OpenPinhole | OpenOutbound | OpenMeeting | AskTransfer
    target: Endpoint
    opened: Callable[[Opened], tuple[Edit, ...]]
    otherwise: tuple[Edit, ...] = ()
    sent: Kind = Kind.PORT
    sent_otherwise: Kind = Kind.PORT
    refused: Wrong | None = None
    before: tuple[Command, ...] = ()


Answer = Pass | Ask


class Strategy(Protocol):
    """One way to treat the lines that agree on a data connection. Each method may raise Wrong or Unclear."""

    def command(self, command: FtpCommand, line: bytes) -> Answer | None:
        """What to do with a command of the client; None: it is not this strategy's."""
        ...

    def reply(self, sent: Sent, code: int, line: bytes) -> Answer | None:
        """What to do with the last line of the reply to `sent`, a command that means something or whose reply is 227 or
        229; None: it is not this strategy's."""
        ...

    def replaces(self, sent: Sent, code: int) -> bool:
        """Whether the last line is all that the client gets to see of a reply of several lines to `sent`."""
        ...

"""The questions that a session asks its strategies about a line of a control connection, and the possible answers.

A session reads lines and asks its strategies, in a fixed order, what to do with each. The first one that has an answer
decides. A strategy is pure and knows nothing of the others; `Talk` holds what was said so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from alg.address import Address, Endpoint
from alg.api import AskTransfer, Command, Edit, Opened, OpenMeeting, OpenOutbound, OpenPinhole
from alg.ftp.commands import FtpCommand
from alg.ftp.options import FtpOptions
from alg.ftp.replies import OTHER, CommandKind, ReplyTracker, Sent, Unanswered

TTL = 60.0
"""Seconds that a pinhole stays open if no connection comes."""


@dataclass(slots=True)
class Talk:
    """What is known about one control connection. `published`: the server is the side that is inside.

    `greeted`: the server has sent its greeting; `epsv_all`: the client has promised to use nothing but EPSV (RFC 2428,
    4); `no_epsv`: the server has shown that it does not know EPSV.
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
        """Return a number for a pinhole, or for a command that has to be found again."""
        self.latest_ref += 1
        return self.latest_ref


class WrongLine(Exception):
    """A line that no honest peer sends: the session opens no more pinholes. `rule` ("ftp.address") says why."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


class Unclear(Exception):
    """A line that gets no pinhole because it cannot be read, but does no harm either: it passes, and the session goes
    on. `rule` is the code of the note."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Pass:
    """Deliver the line now, with `edits`. `sent`: for a command, what is remembered of it until its reply comes.

    `before` and `after`: further commands, before and after the line is delivered.
    """

    edits: tuple[Edit, ...] = ()
    sent: Sent = OTHER
    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class AskFirst:
    """Hold the line back until `question` is answered, then deliver it with the edits that `opened` makes of the answer
    (ValueError: the line cannot name that endpoint). Without a pinhole it is delivered with the edits `otherwise`.

    `before`: further commands that are given at once. `target`: for the log. `sent` and `sent_otherwise`: for a
    command, which kind is remembered. `refused`: why the session is given up if the answer is no.
    """

    question: OpenPinhole | OpenOutbound | OpenMeeting | AskTransfer
    target: Endpoint
    opened: Callable[[Opened], tuple[Edit, ...]]
    otherwise: tuple[Edit, ...] = ()
    sent: CommandKind = CommandKind.PORT
    sent_otherwise: CommandKind = CommandKind.PORT
    refused: WrongLine | None = None
    before: tuple[Command, ...] = ()


LineAnswer = Pass | AskFirst


class Strategy(Protocol):
    """One way to treat the lines that agree on a data connection. Each method may raise Wrong or Unclear."""

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer | None:
        """Return what to do with a command of the client; None: this strategy has no answer."""
        ...

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        """Return what to do with the last line of the reply to `sent`, which is a command that means something, or
        whose reply is 227 or 229; None: this strategy has no answer."""
        ...

    def replaces(self, sent: Sent, code: int) -> bool:
        """Whether the client gets to see only the last line of a reply of several lines to `sent`."""
        ...

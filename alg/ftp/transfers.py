"""Transfers between two servers (FXP): a PORT that names a third host, which a rule may permit."""

from __future__ import annotations

from alg.api import AskTransfer, Edit, Opened
from alg.ftp.active import Other, read_advert
from alg.ftp.commands import FtpCommand
from alg.ftp.replies import Sent
from alg.ftp.strategy import AskFirst, LineAnswer, Talk, WrongLine


class Transfers:
    """Strategy: asks whether the third host is permitted. If so, the line is delivered as it came, and nothing is
    opened."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer | None:
        talk = self._talk
        if command.verb not in ("PORT", "EPRT") or talk.epsv_all or not talk.greeted:
            return None
        try:
            read_advert(command, talk.client)
        except Other as other:
            advert = other.advert
            if advert.target.ip == talk.server:
                return None

            def opened(event: Opened) -> tuple[Edit, ...]:
                return advert.edits(event.public)

            return AskFirst(AskTransfer(talk.new_ref(), advert.target), advert.target, opened, refused=other)
        except WrongLine:
            pass
        return None

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        return None

    def replaces(self, sent: Sent, code: int) -> bool:
        return False

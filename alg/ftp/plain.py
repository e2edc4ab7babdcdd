"""Both modes without conversion: PORT and EPRT get a pinhole to the client, 227 and 229 an outbound one to the
server."""

from __future__ import annotations

from alg.api import Edit, Note, Opened, OpenOutbound, OpenPinhole
from alg.ftp.active import read_advert
from alg.ftp.commands import FtpCommand
from alg.ftp.passive import Passive, read_passive
from alg.ftp.replies import CommandKind, Sent
from alg.ftp.strategy import TTL, AskFirst, LineAnswer, Pass, Talk, Unclear, WrongLine

_KINDS = {"PASV": CommandKind.PASV, "EPSV": CommandKind.EPSV, "AUTH": CommandKind.AUTH}


class Plain:
    """The last strategy: it answers every command."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer:
        if command.verb in ("PORT", "EPRT"):
            return self._port(command)
        if command.is_epsv_all:
            self._talk.epsv_all = True
            return Pass(sent=Sent(CommandKind.EPSV_ALL))
        before: tuple[Note, ...] = ()
        if command.verb in ("LPRT", "LPSV"):
            before = (Note("ftp.rfc1639", f"{command.verb} is relayed, and nothing opened"),)
        return Pass(sent=Sent(_KINDS.get(command.verb, CommandKind.OTHER)), before=before)

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        if code not in (227, 229):
            return None
        if self._talk.published and sent.kind is CommandKind.OTHER:
            return None  # a port of the inside is opened only where the client has asked for one
        if code == 227 and sent.kind is not CommandKind.EPSV and self._talk.epsv_all:
            return Pass(before=(Note("ftp.epsv-all", "227 after EPSV ALL"),))
        try:
            return self.lead(read_passive(self._talk, code, line))
        except WrongLine as wrong:
            if self._talk.published:
                raise
            # It is a port of the server itself, outside: nothing is opened for it, and nothing is lost.
            raise Unclear(wrong.rule, str(wrong)) from wrong

    def replaces(self, sent: Sent, code: int) -> bool:
        return False

    def lead(self, passive: Passive) -> LineAnswer:
        """Let the client connect to where the server listens."""
        talk = self._talk
        ref, target = talk.new_ref(), passive.target

        def opened(event: Opened) -> tuple[Edit, ...]:
            return passive.edits(event.public)

        if talk.published:
            question = OpenPinhole(ref, target, str(talk.client), "tcp", TTL, passive.reason)
            return AskFirst(question, target, opened)
        before: tuple[Note, ...] = ()
        if passive.is_foreign and passive.keep:
            before = (Note("ftp.address", f"reply 227 names {passive.written} instead of {talk.server}"),)
        return AskFirst(OpenOutbound(ref, target, "tcp", TTL, "ftp.passive"), target, opened, before=before)

    def _port(self, command: FtpCommand) -> LineAnswer:
        talk = self._talk
        if talk.epsv_all:
            return Pass(before=(Note("ftp.epsv-all", f"{command.verb} after EPSV ALL"),))
        if not talk.greeted:
            raise WrongLine("ftp.early", f"{command.verb} before the server's greeting")
        advert = read_advert(command, talk.client)

        def opened(event: Opened) -> tuple[Edit, ...]:
            return advert.edits(event.public)

        question = OpenPinhole(talk.new_ref(), advert.target, str(talk.server), "tcp", TTL, advert.reason)
        return AskFirst(question, advert.target, opened)

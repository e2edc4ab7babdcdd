"""An IPv6 client and an IPv4 server behind NAT64 (RFC 6384, 5).

EPSV becomes PASV where the server does not know EPSV, and its 227 becomes a 229. EPRT is converted to EPSV, as
`alg.ftp.convert.ConvertActive` does it.
"""

from __future__ import annotations

from alg.address import Endpoint
from alg.api import Edit, Opened, OpenOutbound, Say, Side
from alg.ftp.commands import FtpCommand
from alg.ftp.convert import REASON
from alg.ftp.passive import read_passive
from alg.ftp.replies import CommandKind, Sent
from alg.ftp.strategy import TTL, AskFirst, LineAnswer, Pass, Talk


class Nat64:
    """Strategy: asks for IPv4's passive mode in the client's place, and answers the client in the form of IPv6."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._extended: set[int] = set()  # PASV of ours that the client sent as EPSV

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer | None:
        """Handle EPSV of a client whose server does not know it."""
        if command.verb != "EPSV" or not self._talk.no_epsv or command.is_epsv_all:
            return None
        verb = len(line[: command.start].rstrip(b" ")) - len("EPSV")
        return Pass((Edit(verb, command.end, b"PASV", REASON),), self._extended_sent())

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        if sent.kind is CommandKind.EPSV and code in (500, 502):
            return self._try_pasv(sent, line)
        if not self.replaces(sent, code):
            if sent.ref is not None:
                self._extended.discard(sent.ref)
            return None
        if sent.ref is not None:
            self._extended.discard(sent.ref)
        target = read_passive(self._talk, code, line).target
        edits = _translated(target, len(line))  # the client can do nothing with a 227, pinhole or not

        def opened(event: Opened) -> tuple[Edit, ...]:
            return _translated(event.public, len(line))

        question = OpenOutbound(self._talk.new_ref(), target, "tcp", TTL, "ftp.passive")
        return AskFirst(question, target, opened, otherwise=edits)

    def replaces(self, sent: Sent, code: int) -> bool:
        """Whether it is a 227 that answers what the client sent as EPSV."""
        return code == 227 and (sent.ref in self._extended or (sent.kind is CommandKind.EPSV and sent.ref is None))

    def _try_pasv(self, sent: Sent, line: bytes) -> LineAnswer | None:
        """The server does not know EPSV: send PASV in place of the client, and keep the reply from the client."""
        talk = self._talk
        talk.no_epsv = True
        if len(talk.unanswered) or talk.replies.several:
            return None  # it would not be clear which reply is whose
        again = self._extended_sent() if sent.ref is None else Sent(CommandKind.PASV, sent.ref)
        talk.unanswered.add(again)
        say = Say(Side.SERVER, b"PASV\r\n", REASON)
        return Pass((Edit(0, len(line), b"", REASON),), before=(say,))

    def _extended_sent(self) -> Sent:
        ref = self._talk.new_ref()
        self._extended.add(ref)
        return Sent(CommandKind.PASV, ref)


def _translated(public: Endpoint, length: int) -> tuple[Edit, ...]:
    """Return the edit that turns a 227 of `length` bytes into a 229 with the port of `public`."""
    return (Edit(0, length, b"229 Entering Extended Passive Mode (|||%d|).\r\n" % public.port, REASON),)

"""Conversion between active and passive mode (`[alg.ftp] convert`): one side is told something else than the other side
said.

Here, and for NAT64, the gateway makes commands and replies of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint
from alg.api import Edit, Opened, OpenMeeting, OpenRelay
from alg.ftp.active import Advert, read_advert
from alg.ftp.addresses import format_port_argument
from alg.ftp.commands import TRANSFERS, FtpCommand
from alg.ftp.passive import read_passive
from alg.ftp.replies import CommandKind, Sent
from alg.ftp.strategy import TTL, AskFirst, LineAnswer, Pass, Talk

REASON = "ftp.convert"
_MOST_RELAYS = 16  # of a client that pipelines


@dataclass(slots=True)
class _DataRelay:
    """A PORT or EPRT that the server got as PASV or EPSV. The gateway connects to both sides once `server`, the
    endpoint of its reply, is known and the transfer has `begun` (clients need not listen before that)."""

    advert: Advert
    server: Endpoint | None = None
    begun: bool = False


class ConvertActive:
    """Strategy: the client is active, the server passive."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._relays: dict[int, _DataRelay] = {}  # not connected yet, the latest is the last

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer | None:
        talk = self._talk
        if command.verb in TRANSFERS and self._relays:
            ref, relay = next(reversed(self._relays.items()))
            relay.begun = True
            return Pass(after=self._connected(ref))
        if command.verb not in ("PORT", "EPRT") or talk.epsv_all or not talk.greeted:
            return None
        advert = read_advert(command, talk.client)
        verb = "PASV" if command.verb == "PORT" or talk.no_epsv else "EPSV"
        if not len(talk.unanswered):
            self._relays.clear()  # nothing was transferred
        elif len(self._relays) >= _MOST_RELAYS:
            del self._relays[next(iter(self._relays))]
        ref = talk.new_ref()
        self._relays[ref] = _DataRelay(advert)
        edit = Edit(command.start - len(command.verb) - 1, command.end, verb.encode(), REASON)
        return Pass((edit,), Sent(CommandKind[verb], ref))

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        relay = self._relays.get(sent.ref) if sent.ref is not None else None
        if relay is None or sent.ref is None:
            return None
        if code not in (227, 229):
            del self._relays[sent.ref]  # the server will not be passive
            return None
        relay.server = read_passive(self._talk, code, line).target
        text = f"200 {relay.advert.command.verb} command successful.\r\n".encode()
        return Pass((Edit(0, len(line), text, REASON),), after=self._connected(sent.ref))

    def replaces(self, sent: Sent, code: int) -> bool:
        return sent.ref in self._relays

    def _connected(self, ref: int) -> tuple[OpenRelay, ...]:
        relay = self._relays[ref]
        if not relay.begun or relay.server is None:
            return ()
        del self._relays[ref]
        return (OpenRelay(relay.advert.target, relay.server, REASON),)


class ConvertPassive:
    """Strategy: the client is passive, the server active, and both connect to the gateway. Only for IPv4, and not for
    published servers."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._inner: dict[int, Endpoint] = {}  # where the client has to connect, until the server has answered

    def command(self, command: FtpCommand, line: bytes) -> LineAnswer | None:
        talk = self._talk
        if command.verb != "PASV" or command.argument or not talk.greeted or talk.epsv_all:
            return None
        self._inner.clear()
        ref = talk.new_ref()

        def opened(event: Opened) -> tuple[Edit, ...]:
            text = b"PORT " + format_port_argument(event.public)
            if event.inner is not None:
                self._inner[ref] = event.inner
            return (Edit(command.end - len(command.verb), command.end, text, REASON),)

        target = Endpoint.of(talk.client, 0)
        return AskFirst(OpenMeeting(ref, TTL, REASON), target, opened, sent_otherwise=CommandKind.PASV)

    def reply(self, sent: Sent, code: int, line: bytes) -> LineAnswer | None:
        inner = self._inner.pop(sent.ref, None) if sent.ref is not None else None
        if inner is None or code >= 300:
            return None
        text = b"227 Entering Passive Mode (%s).\r\n" % format_port_argument(inner)
        return Pass((Edit(0, len(line), text, REASON),))

    def replaces(self, sent: Sent, code: int) -> bool:
        return False

"""The FTP module: a control connection; conversion between active and passive mode, where the options ask for it, and
between IPv6 and IPv4, where the server is behind NAT64 (RFC 6384)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from alg.address import Endpoint
from alg.api import (
    AskTransfer,
    Command,
    Deliver,
    Edit,
    Event,
    FlowContext,
    Opened,
    OpenMeeting,
    OpenOutbound,
    OpenRelay,
    Side,
)
from alg.ftp.commands import FtpCommand, parse_command
from alg.ftp.control import TTL, FtpControl
from alg.ftp.convert import REASON, TRANSFERS, DataRelay, Meeting, Translated, passive_reply
from alg.ftp.endpoints import Other, Wrong, read_advert, read_epsv_reply, read_pasv_reply
from alg.ftp.replies import Kind, Sent

_MOST_RELAYS = 16  # of a client that pipelines


class FtpModule(FtpControl):
    """One FTP control connection, as `alg.api.AlgModule`."""

    def __init__(self, context: FlowContext) -> None:
        super().__init__(context)
        self._relays: dict[int, DataRelay] = {}  # not connected yet, the latest is the last
        self._inner: dict[int, Endpoint] = {}  # of meetings, until the server has answered
        self._nat64 = self._server.version == 6 and any(
            self._server in ipaddress.ip_network(prefix) for prefix in self._options.nat64
        )
        self._no_epsv = False  # the server does not know it
        self._extended: set[int] = set()  # PASV of ours that the client sent as EPSV
        self._within_reply = False  # the server's latest line was not the last of a reply
        self._transfers = context.transfers
        self._asked: Other | None = None  # the latest third host that a client named

    def handle(self, event: Event) -> Sequence[Command]:
        """See `AlgModule.handle`."""
        if isinstance(event, Opened) and event.inner is not None:
            self._inner[event.ref] = event.inner
        return super().handle(event)

    # --- transfers between two servers ------------------------------------------------------------------------------

    def _asks_transfer(self, command: FtpCommand, line: bytes, now: float) -> bool:
        """Whether a PORT or EPRT names a third host: a rule may permit it, and then it goes out as it came."""
        if not self._transfers or self._epsv_all or not self._greeted:
            return False
        try:
            read_advert(command, self._client)
        except Other as other:
            if other.advert.target.ip == self._server:
                return False
            self._close_old()
            self._asked = other
            self._out.append(AskTransfer(self._wait(Side.CLIENT, line, now, other.advert), other.advert.target))
            return True
        except Wrong:
            pass
        return False

    def _refused(self, ref: int, now: float) -> None:
        wait = self._streams[Side.CLIENT].wait
        if wait and wait.ref == ref and self._asked and wait.advert is self._asked.advert:
            self._revoke(self._asked.rule, str(self._asked), Side.CLIENT)
            return
        super()._refused(ref, now)

    # --- the client is active, the server passive -------------------------------------------------------------------

    def _port(self, command: FtpCommand, line: bytes, now: float) -> None:
        if self._asks_transfer(command, line, now):
            return
        converts = self._options.convert == "active" or self._nat64
        if not converts or self._epsv_all or not self._greeted:
            super()._port(command, line, now)
            return
        verb = "PASV" if command.verb == "PORT" or self._no_epsv else "EPSV"
        try:
            relay = DataRelay(read_advert(command, self._client), verb)
        except Wrong as wrong:
            self._revoke(wrong.rule, str(wrong), Side.CLIENT, line)
            return
        self._close_old()
        if not len(self._unanswered):
            self._relays.clear()  # nothing was transferred
        elif len(self._relays) >= _MOST_RELAYS:
            del self._relays[next(iter(self._relays))]
        self._last_ref += 1
        self._relays[self._last_ref] = relay
        self._unanswered.add(Sent(Kind[verb], self._last_ref))
        self._deliver(Side.CLIENT, line, relay.request)

    def _passive(self, sent: Sent, line: bytes, now: float) -> None:
        if sent.ref in self._extended:
            self._translate(sent, line, now)
            return
        relay = None if sent.ref is None else self._relays.get(sent.ref)
        if relay is None or sent.ref is None:
            super()._passive(sent, line, now)
            return
        try:
            # A server that names another address means itself: nobody else is connected to.
            read = read_pasv_reply(line, self._server, True) if sent.kind is Kind.PASV else None
            relay.server = (read or read_epsv_reply(line, self._server)).target
        except Wrong as wrong:
            self._revoke(wrong.rule, str(wrong), Side.SERVER, line)
            return
        self._deliver(Side.SERVER, line, relay.answer(line))
        self._connect(sent.ref)

    def _connect(self, ref: int) -> None:
        relay = self._relays[ref]
        if relay.begun and relay.server is not None:
            del self._relays[ref]
            self._out.append(OpenRelay(relay.advert.target, relay.server, REASON))

    def _deliver(self, side: Side, data: bytes, edits: tuple[Edit, ...] = ()) -> None:
        in_passive = side is Side.SERVER and self._replies.within in (b"227", b"229") and not self._unread
        ours = self._extended or any(relay.server is None for relay in self._relays.values())
        if in_passive and not edits and ours:
            edits = (Edit(0, len(data), b"", REASON),)  # the last line is all that we make of this reply
        if side is Side.SERVER:
            self._within_reply = self._replies.within is not None
        super()._deliver(side, data, edits)

    # --- the client is of IPv6, the server of IPv4, behind NAT64 ----------------------------------------------------

    def _extended_passive(self, command: FtpCommand, line: bytes) -> None:
        """EPSV of a client whose server does not know it."""
        self._close_old()
        verb = len(line[: command.start].rstrip(b" ")) - len("EPSV")
        edit = Edit(verb, command.end, b"PASV", REASON)
        self._unanswered.add(Sent(Kind.PASV, self._extended_ref()))
        self._deliver(Side.CLIENT, line, (edit,))

    def _extended_ref(self) -> int:
        self._last_ref += 1
        self._extended.add(self._last_ref)
        return self._last_ref

    def _try_pasv(self, sent: Sent, line: bytes) -> tuple[Edit, ...]:
        """The server does not know EPSV: ask again, in place of the client; the edit that keeps the answer from it."""
        self._no_epsv = True
        if len(self._unanswered) or self._within_reply:
            return ()  # it would not be clear which reply is whose
        if sent.ref is not None and sent.ref in self._relays:
            self._relays[sent.ref].verb = "PASV"
        self._unanswered.add(Sent(Kind.PASV, self._extended_ref() if sent.ref is None else sent.ref))
        self._out.append(Deliver(Side.SERVER, b"", (Edit(0, 0, b"PASV\r\n", REASON),)))
        return (Edit(0, len(line), b"", REASON),)

    def _translate(self, sent: Sent, line: bytes, now: float) -> None:
        """The 227 of a PASV that the client sent as EPSV. Whatever address it names, the server's own is meant."""
        self._extended.discard(sent.ref or 0)
        try:
            target = read_pasv_reply(line, self._server, True).target
        except Wrong as wrong:
            self._revoke(wrong.rule, str(wrong), Side.SERVER, line)
            return
        ref = self._wait(Side.SERVER, line, now, Translated(target, len(line)))
        self._out.append(OpenOutbound(ref, target, "tcp", TTL, 1, "ftp.passive"))

    def _release(self, side: Side, edits: tuple[Edit, ...] = (), ref: int | None = None) -> None:
        wait = self._streams[side].wait
        if wait and isinstance(wait.advert, Translated) and not edits:
            edits = wait.advert.edits(wait.advert.target)  # the client can do nothing with a 227, pinhole or not
        super()._release(side, edits, ref)

    # --- the client is passive, the server active -------------------------------------------------------------------

    def _client_line(self, line: bytes, now: float) -> None:
        command = None if self._unanswered.has(Kind.AUTH) else parse_command(line)
        if command and self._is_to_meet(command):
            self._close_old()
            self._inner.clear()
            ref = self._wait(Side.CLIENT, line, now, Meeting(command, Endpoint.of(self._client, 0)))
            self._out.append(OpenMeeting(ref, TTL, REASON))
            return
        if command and command.verb == "EPSV" and self._no_epsv and command.argument.upper() != b"ALL":
            self._extended_passive(command, line)
            return
        super()._client_line(line, now)
        if command and command.verb in TRANSFERS and self._relays and not self._unread:
            latest = next(reversed(self._relays))
            self._relays[latest].begun = True
            self._connect(latest)

    def _is_to_meet(self, command: FtpCommand) -> bool:
        return (
            self._options.convert == "passive"
            and command.verb == "PASV"
            and not command.argument
            and self._greeted
            and not (self._epsv_all or self._published)
            and self._client.version == 4
        )

    def _answer_edits(self, sent: Sent, code: int, line: bytes) -> tuple[Edit, ...]:
        if self._nat64 and sent.kind is Kind.EPSV and code in (500, 502):
            edits = self._try_pasv(sent, line)
            if edits:
                return edits
        if sent.ref is None:
            return ()
        self._extended.discard(sent.ref)
        self._relays.pop(sent.ref, None)  # the server will not be passive
        inner = self._inner.pop(sent.ref, None)
        return passive_reply(line, inner) if inner is not None and code < 300 else ()

"""SIP (RFC 3261): `SipEngine` for datagrams, `SipModule` for a TCP flow.

How to drive them: docs/decisions/0050-sip-module.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from alg.address import Endpoint
from alg.api import Activity, Opened, Refused, Side, Tick
from alg.sip.core import HOLD, Core
from alg.sip.events import Datagram, Moved, RevokeConversation, SipCommand, SipEvent
from alg.sip.journal import Changes, Entry, Record, TalkRecord
from alg.sip.ladder import unread_rung
from alg.sip.module import SipModule
from alg.sip.options import SipOptions
from alg.sip.rows import CallMedia, CallRow, row_of
from alg.sip.stream import begins_as_sip

__all__ = ["HOLD", "CallMedia", "CallRow", "SipEngine", "SipModule", "SipOptions"]

MOST_REVOKED = 20000
MOST_CLIENTS = 20000
_STUN_BINDING = (b"\x00\x01", b"\x01\x01")  # request and success: a keep-alive of RFC 5626, 3.5.2
_STUN_COOKIE = b"\x21\x12\xa4\x42"


class SipEngine:
    """All SIP over UDP between inside clients and the outside. `recorded`: whether `journal` will be asked for.

    `fixed`: a client's socket and its public one, which is there for as long as the engine (a SOCKS association's):
    nothing is opened for what it signals, and whatever port the client names, it is reached there.
    """

    def __init__(
        self,
        options: SipOptions | None = None,
        recorded: bool = False,
        fixed: tuple[Endpoint, Endpoint] | None = None,
    ) -> None:
        self._options = options or SipOptions()
        self._changes = Changes() if recorded else None
        self._core = Core(self._options, self._changes)
        if fixed is not None:
            self._core.conversations.fix(*fixed)
        self._revoked: dict[tuple[Endpoint, str], str] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self._over_rate = 0
        self._out: list[SipCommand] = []

    def handle(self, event: SipEvent) -> Sequence[SipCommand]:
        """Take one event; answer with commands, to be done in this order. Never raises, never blocks."""
        match event:
            case Datagram():
                self._datagram(event)
            case Opened(ref, public, now):
                self._core.opened(ref, public, now)
            case Refused(ref, rule, now):
                self._core.refused(ref, rule, now)
            case Activity(ref, packets_in, packets_out, now):
                self._core.active(ref, (packets_in, packets_out), now)
            case Moved(ref, now):
                self._core.conversations.reopen(ref, now)
            case Tick(now):
                self._core.tick(now)
        out: Sequence[SipCommand] = self._core.taken()
        if self._out:
            out, self._out = [*self._out, *out], []
        return out

    def deadline(self) -> float | None:
        """When a `Tick` is wanted, or None."""
        return self._core.deadline()

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return [row_of(call) for call in self._core.calls.all()]

    def journal(self) -> list[Entry]:
        """What has changed since this was asked last: to be stored, the latest entry of each key."""
        return self._changes.taken(self._core.conversations, self._core.calls) if self._changes else []

    def restore(self, records: Sequence[Record], now: float) -> None:
        """Begin with what another engine's entries said. Only before any event."""
        self._core.restore(records, now)
        for record in records:
            if isinstance(record, TalkRecord) and record.revoked:
                self._revoked[record.client, record.server] = record.rule

    def counts(self) -> dict[str, int]:
        """Since the start: calls begun and answered, registrations granted, messages beyond a client's rate; and
        registrations that are bound now."""
        calls, bindings = self._core.calls, self._core.bindings
        return {
            "over_rate": self._over_rate,
            "begun": calls.begun,
            "answered": calls.answered,
            "granted": bindings.granted,
            "registered": len(bindings),
        }

    def _datagram(self, event: Datagram) -> None:
        if self._revoked and (event.client, event.server.host) in self._revoked:
            self._core.release(event.packet, unread_rung(event.data))
        elif not self._within_rate(event.client.host, event.now):
            self._over_rate += 1
            self._core.note("sip.rate", f"more than {self._options.rate} messages a second", event.now, event.client)
            self._core.release(event.packet, unread_rung(event.data))
        elif begins_as_sip(event.data):
            self._core.message(event.packet, event.side, event.client, event.server, event.data, event.now)
        else:
            if event.side is Side.CLIENT and not _is_keep_alive(event.data):
                self._revoke(event, "sip.not-sip")
            self._core.release(event.packet)

    def _revoke(self, event: Datagram, rule: str) -> None:
        if len(self._revoked) >= MOST_REVOKED:
            oldest = next(iter(self._revoked))
            del self._revoked[oldest]
            if self._changes is not None:
                self._changes.talk(*oldest, None, revoked=True)
        self._revoked[event.client, event.server.host] = rule
        if self._changes is not None:
            self._changes.talk(event.client, event.server.host, rule, revoked=True)
        self._out.append(RevokeConversation(event.client, event.server.host, rule))

    def _within_rate(self, host: str, now: float) -> bool:
        """Take one of the client's tokens: `rate` more each second, twice as many at most."""
        most = 2.0 * self._options.rate
        tokens, at = self._rates.pop(host, (most, now))
        tokens = min(most, tokens + (now - at) * self._options.rate)
        if len(self._rates) >= MOST_CLIENTS:
            del self._rates[next(iter(self._rates))]
        self._rates[host] = (tokens - 1.0 if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0


def _is_keep_alive(data: bytes) -> bool:
    """Blank lines, zero bytes, or STUN's Binding: what phones send to keep a NAT's port."""
    if not data.strip(b"\r\n\t \x00"):
        return True
    return len(data) >= 20 and data[:2] in _STUN_BINDING and data[4:8] == _STUN_COOKIE

"""SIP (RFC 3261) in datagrams: `SipEngine`. `alg.sip.tcp` is for TCP flows.

How to drive them: docs/protocols/sip.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, cast

from alg.api import Activity, Opened, Refused, Side, Tick
from alg.bucket import Rate
from alg.datagrams import (
    Datagram,
    DatagramCommand,
    DatagramContext,
    DatagramEvent,
    Entry,
    Kicked,
    Moved,
    Row,
    Shown,
)
from alg.sip.call import CallState
from alg.sip.core import Core
from alg.sip.ladder import unread_rung
from alg.sip.options import SipOptions
from alg.sip.peers import PeerRow
from alg.sip.records import UnsavedChanges, records_of
from alg.sip.rows import CallRow, call_rows, kicked, peer_rows, row_of
from alg.sip.stream import begins_as_sip, hides_sip

TABLES = ("calls", "peers")
GAUGES = ("algate_calls",)
MOST_CLIENTS = 20000


class SipEngine:
    """All SIP over UDP between inside clients and the outside, as `alg.datagrams.DatagramModule`."""

    Options: ClassVar[type[SipOptions]] = SipOptions
    shown: ClassVar[bool] = True  # its messages hold no passwords, so `algate trace` may show them
    recorded: ClassVar[bool] = True
    read_inbound: ClassVar[bool] = True  # calls come to the public port of a registration
    tables: ClassVar[tuple[str, ...]] = TABLES
    gauges: ClassVar[tuple[str, ...]] = GAUGES
    kinds: ClassVar[tuple[str, ...]] = ("conversation",)

    def __init__(self, context: DatagramContext | None = None) -> None:
        context = context or DatagramContext()
        self._options = context.options if isinstance(context.options, SipOptions) else SipOptions()
        self.look_every = self._options.look_every
        self._changes = UnsavedChanges() if context.recorded else None
        self._core = Core(self._options, self._changes)
        if context.fixed is not None:
            self._core.sockets.fix(*context.fixed)
        for target, public in context.published.items():
            self._core.sockets.publish(target, public)
        self._rate = Rate(self._options.rate, 2 * self._options.rate, MOST_CLIENTS)
        self._over_rate = 0

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        """Handle one event, and return commands, which are carried out in this order. Never raises, never blocks."""
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
                self._core.sockets.reopen(ref, now)
            case Tick(now):
                self._core.tick(now)
        # Only a core of streams asks for sockets of others.
        return cast(Sequence[DatagramCommand], self._core.drain())

    def deadline(self) -> float | None:
        """Return when a `Tick` is wanted, or None."""
        return self._core.deadline()

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return [row_of(call) for call in self._core.calls.all()]

    def peers(self, now: float) -> list[PeerRow]:
        """Return the pairs of client and server, and how their messages are treated."""
        return self._core.peers.rows(now)

    def table(self, name: str, shown: Shown) -> list[Row]:
        """Return the calls under way as `algate calls` shows them, or the pairs of client and server and how their
        messages are treated."""
        if name == "peers":
            return peer_rows(self.peers(shown.now), shown.now)
        return call_rows(self.calls(), shown.leases, shown.traffic, shown.now) if name == "calls" else []

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """Calls, registrations and what could not be read, for the metrics."""
        counts = self.counts()
        states = Counter(dict.fromkeys(map(str, CallState), 0))
        states.update(str(call.state) for call in self._core.calls.all())
        return [
            *((("algate_calls", state), float(number)) for state, number in states.items()),
            (("algate_calls_total", "begun"), counts["begun"]),
            (("algate_calls_total", "answered"), counts["answered"]),
            (("algate_registrations",), counts["registered"]),
            (("algate_registrations_total",), counts["granted"]),
        ]

    def kick(self, name: str) -> list[Kicked]:
        """End the media of the call with this Call-ID."""
        return kicked(self.calls(), name)

    def journal(self) -> list[Entry]:
        """Return what has changed since the last call: entries to store, the latest one of each key."""
        return self._changes.drain(self._core.sockets, self._core.calls) if self._changes else []

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        """Start with the entries of another engine. Called before any event."""
        records = records_of(entries)
        self._core.restore(records, now)

    def counts(self) -> dict[str, int]:
        """Return counts since the start (calls begun and answered, registrations granted, messages beyond a client's
        rate, and those that could not be read) and the number of current registrations."""
        calls, bindings = self._core.calls, self._core.bindings
        return {
            "over_rate": self._over_rate,
            "unread": self._core.unread,
            "begun": calls.begun,
            "answered": calls.answered,
            "granted": bindings.granted,
            "registered": len(bindings),
        }

    def _datagram(self, event: Datagram) -> None:
        if not self._rate.take(event.client.host, event.now):
            self._over_rate += 1
            self._core.note(
                "sip.rate", f"more than {self._options.rate} messages a second (alg.sip.rate)", event.now, event.client
            )
            self._core.release(event.packet, unread_rung(event.data))
        elif not begins_as_sip(event.data):
            # A keep-alive, of whatever bytes: it says nothing and changes nothing. But SIP in the middle of something
            # else is what a browser can be made to send (NAT slipstreaming): it is no phone's.
            if event.side is Side.CLIENT and hides_sip(event.data):
                self._core.revoke(event.client, event.server.host, "sip.not-sip", event.now)
            self._core.release(event.packet)
        elif self._core.peers.is_revoked(event.client, event.server.host, event.now):
            self._core.release(event.packet, unread_rung(event.data))
        else:
            self._core.message(event.packet, event.side, event.client, event.server, event.data, event.now)

"""SIP (RFC 3261): `SipEngine` for datagrams, `SipModule` for a TCP flow. How to drive them: docs/decisions/0050-sip-module.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alg.address import Endpoint
from alg.sip.events import Datagram, Release, SipCommand, SipEvent

HOLD = 2.0  # seconds that a message waits for its conversations at most


@dataclass(frozen=True, slots=True)
class SipOptions:
    """Keys of `[alg.sip]`. `media_source`: who may send media in, "sdp" (whom the far side's SDP names) or "any".

    `stand_down`: addresses of registrars and proxies that repair NAT themselves. `rate`: messages a second of one
    client; twice as many at once.
    """

    media_source: str = "sdp"
    stand_down: tuple[str, ...] = ()
    rate: int = 200


@dataclass(frozen=True, slots=True)
class CallMedia:
    """One stream of a call: the client's socket, what is advertised for it, who may send in (None: anyone)."""

    ref: int
    kind: str
    target: Endpoint
    public: Endpoint | None
    peers: tuple[str, ...] | None
    packets_in: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call as `algate calls` shows it. `caller` and `callee`: URIs; `state`: trying, early, confirmed; `since`: when
    it came to that state, on the clock of the events."""

    client: str
    server: str
    call_id: str
    caller: str
    callee: str
    state: str
    since: float
    media: tuple[CallMedia, ...]


class SipEngine:
    """All SIP over UDP between inside clients and the outside."""

    def __init__(self, options: SipOptions | None = None) -> None:
        self._options = options or SipOptions()

    def handle(self, event: SipEvent) -> Sequence[SipCommand]:
        """Take one event; answer with commands, to be done in this order. Never raises, never blocks."""
        return [Release(event.packet)] if isinstance(event, Datagram) else []

    def deadline(self) -> float | None:
        """When a `Tick` is wanted, or None."""
        return None

    def calls(self) -> list[CallRow]:
        """The calls under way."""
        return []

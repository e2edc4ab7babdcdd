"""The state that outlives the portmap process: the mappings, written to a journal as they change, and the time at which
the epoch began."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import msgspec

from alg.address import Endpoint
from gateway.front.packets.journal import Journal, Stored
from gateway.front.portmap.table import Hold, HolderName, Mapping, MappingEvent, MappingKey
from gateway.model.requests import Transport
from gateway.observe.log import get_logger

log = get_logger()


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """A mapping in the journal. Times are monotonic."""

    client: str
    transport: Transport
    port: int
    public: str
    public_port: int
    holds: tuple[tuple[HolderName, str, float, str, float, tuple[str, ...], str], ...]
    above: str = ""  # what the router above gives, if it was asked
    above_port: int = 0


class _Clock(msgspec.Struct, array_like=True, frozen=True):
    """The beginning of the epoch in the monotonic time of one boot, and the readings of both clocks at that moment."""

    boot: str
    begun: float
    monotonic: float
    unix: float


_MODULE, _CLOCK = "portmap", "clock"


class Memory:
    """What a predecessor has left (`found`: its mappings), and what a successor will find.

    `boot`: the id of this boot of the host. `restarted`: functions that are called when the epoch has begun again,
    because mappings were lost or the address has changed.
    """

    def __init__(self, journal: Journal, boot: str) -> None:
        self.restarted: list[Callable[[], None]] = []
        self.found: list[Mapping] = []
        self._journal = journal
        self._boot = boot
        self._clock: _Clock | None = None
        self._begun = time.monotonic()  # of the epoch
        self._read()

    def _read(self) -> None:
        stored: list[_Stored] = []
        for entry in self._journal.found:
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                if entry.key == _CLOCK:
                    self._clock = msgspec.msgpack.decode(entry.record or b"", type=_Clock)
                else:
                    stored.append(msgspec.msgpack.decode(entry.record or b"", type=_Stored))
        shift = 0.0
        if self._clock is not None and self._clock.boot != self._boot:
            # The monotonic clock goes on over processes, but not over a boot: there the wall clock has to do.
            shift = (time.monotonic() - time.time()) - (self._clock.monotonic - self._clock.unix)
        self.found = [_mapping(stored_mapping, shift) for stored_mapping in stored]

    @property
    def is_first(self) -> bool:
        """Whether there was no predecessor."""
        return self._clock is None

    @property
    def epoch(self) -> int:
        """Seconds since what clients have was last lost (RFC 6887 section 8.5, RFC 6886 section 3.6)."""
        return int(time.monotonic() - self._begun)

    def go_on(self) -> None:
        """The predecessor's epoch goes on, as nothing was lost; after a boot it begins again all the same."""
        if self._clock is None or self._clock.boot != self._boot:
            self.restart("lost")
            return
        self._begun = self._clock.begun
        self._write_clock()

    def restart(self, why: str) -> None:
        """The epoch begins again: clients have to ask again for what they have."""
        self._begun = time.monotonic()
        self._write_clock()
        log.info("portmap.epoch", reason=why)
        for call in self.restarted:
            call()

    def on_event(self, event: MappingEvent) -> None:
        """Write what has changed; a listener of the table."""
        if event.mapping is None:
            return
        if event.what == "closed":
            self.forget(event.mapping.key)
        else:
            self.write(event.mapping)

    def write(self, mapping: Mapping) -> None:
        """Write a mapping as it is now."""
        holds = tuple(
            (h.holder, h.credential, h.expires, h.lease, h.leased, h.filters, h.peer or h.description)
            for h in mapping.holds.values()
        )
        public, above = mapping.public, mapping.above or Endpoint("", 0)
        stored = _Stored(
            mapping.client, mapping.transport, mapping.port, public.host, public.port, holds, above.host, above.port
        )
        self._journal.put([Stored(_MODULE, _name(mapping.key), msgspec.msgpack.encode(stored))])

    def forget(self, key: MappingKey) -> None:
        """Write that a mapping has ended."""
        self._journal.put([Stored(_MODULE, _name(key))])

    def _write_clock(self) -> None:
        clock = _Clock(self._boot, self._begun, time.monotonic(), time.time())
        self._journal.put([Stored(_MODULE, _CLOCK, msgspec.msgpack.encode(clock))])


def _description(holder: HolderName, text: str) -> tuple[str, str]:
    """Description and peer of a hold; it has one of both."""
    return ("", text) if holder == "peer" else (text, "")


def _mapping(stored: _Stored, shift: float) -> Mapping:
    holds = [
        Hold(holder, credential, expires + shift, lease, leased + shift, filters, *_description(holder, text))
        for holder, credential, expires, lease, leased, filters, text in stored.holds
    ]
    public = Endpoint(stored.public, stored.public_port)
    above = Endpoint(stored.above, stored.above_port) if stored.above else None
    return Mapping(stored.client, stored.transport, stored.port, public, {hold.name: hold for hold in holds}, above)


def _name(key: MappingKey) -> str:
    return f"{key[0]} {key[1]} {key[2]}"

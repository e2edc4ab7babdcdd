"""The offers of one client that have public ports: what the client wrote, and what was written in its place."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint

TTL = 180.0  # seconds that an offer waits for its taker
MOST = 8  # of a connection


@dataclass(slots=True)
class OpenOffer:
    """An offer of the client. `address` and `port` are those that the client wrote; `public` is the endpoint that
    replaced them, once it is open."""

    ref: int
    address: bytes
    port: int
    ends: float
    public: Endpoint | None = None


class Offers:
    """The open offers of one connection, each until its time is over."""

    def __init__(self) -> None:
        self._open: dict[int, OpenOffer] = {}
        self._ref = 0

    def get(self, ref: int) -> OpenOffer | None:
        return self._open.get(ref)

    def by_port(self, port: int) -> OpenOffer | None:
        """Return the offer of this port of the client, or None."""
        return next((opened for opened in self._open.values() if opened.port == port), None)

    def by_public_port(self, port: int) -> OpenOffer | None:
        """Return the offer with this public port, or None."""
        return next(
            (opened for opened in self._open.values() if opened.public is not None and opened.public.port == port), None
        )

    def add(self, address: bytes, port: int, now: float) -> OpenOffer | None:
        """Add an offer. Returns None if there are too many."""
        if len(self._open) >= MOST:
            return None
        self._ref += 1
        opened = self._open[self._ref] = OpenOffer(self._ref, address, port, now + TTL)
        return opened

    def end(self, ref: int) -> None:
        self._open.pop(ref, None)

    def deadline(self) -> float | None:
        """Return the time at which the next offer ends, or None."""
        return min((opened.ends for opened in self._open.values()), default=None)

    def tick(self, now: float) -> None:
        """Forget the offers whose time is over; the kernel has closed their ports."""
        for ref in [opened.ref for opened in self._open.values() if opened.ends <= now]:
            del self._open[ref]

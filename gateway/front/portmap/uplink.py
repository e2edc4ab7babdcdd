"""The state of this router's connection to the outside, for UPnP clients. It is read from files of the kernel that
every user may read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gateway.front.portmap.table import Mapping
from gateway.model.requests import Transport

_ROUTES = Path("/proc/net/route")
_INTERFACES = Path("/sys/class/net")
_TIMEOUTS = Path("/proc/sys/net/netfilter")
_DEFAULT_TIMEOUTS: dict[Transport, int] = {"tcp": 432000, "udp": 120}  # of Linux
_RATE = 100_000_000
_REMEMBERED = 1.0  # seconds


class Uplink:
    """Facts for `gateway.front.portmap.igd.Igd`. `external`: the public IPv4 address, if there is one; `count`: the
    packets that have come in through a mapping."""

    def __init__(self, external: Callable[[], str | None], count: Callable[[Mapping], int]) -> None:
        self._external = external
        self._count = count
        self._began = time.monotonic()
        self._read: tuple[float, str | None] = (-_REMEMBERED, None)

    def external(self) -> str:
        """The public IPv4 address; "" if there is none."""
        return self._external() or ""

    def uptime(self) -> int:
        """Seconds since this process has begun."""
        return int(time.monotonic() - self._began)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def packets(self, mapping: Mapping) -> int:
        """Packets that have come in through a mapping."""
        return self._count(mapping)

    def total(self, what: str) -> int:
        """A counter of the interface to the outside; 0 if there is none."""
        return self._number(f"statistics/{what}") or 0

    def rate(self) -> int:
        """Bits per second of the interface to the outside, as its driver says; some have none."""
        megabits = self._number("speed") or 0
        return min(megabits * 1_000_000, 0xFFFFFFFF) if megabits > 0 else _RATE

    def outbound_timeout(self, transport: Transport) -> int:
        """Seconds for which the kernel keeps a silent connection of a client."""
        name = "nf_conntrack_tcp_timeout_established" if transport == "tcp" else "nf_conntrack_udp_timeout_stream"
        return _integer(_TIMEOUTS / name) or _DEFAULT_TIMEOUTS[transport]

    def _number(self, name: str) -> int | None:
        device = self._device()
        return _integer(_INTERFACES / device / name) if device is not None else None

    def _device(self) -> str | None:
        """The interface of the default route."""
        now = time.monotonic()
        if now - self._read[0] >= _REMEMBERED:
            self._read = now, _default_device()
        return self._read[1]


def _default_device() -> str | None:
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:
        return None
    # Interface, destination, gateway, flags, references, use, metric, mask
    routes = [line.split() for line in lines]
    found = [(int(route[6]), route[0]) for route in routes if route[1] == route[7] == "00000000"]
    return min(found)[1] if found else None


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

"""The sockets at which inside clients ask for public ports. Each is bound to one inside interface, so that nothing from
elsewhere ever reaches the process that reads it, and closed when that interface is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gateway.config.schema import PCP_PORT, SSDP_PORT, Config
from gateway.observe.log import get_logger

BACKLOG = 64

log = get_logger()


class AskingPlace(NamedTuple):
    """The place of one socket of the portmap process: what clients ask there ("pcp": PCP and NAT-PMP, "ssdp", "http"),
    the interface with its index (`device`), and the family."""

    what: str
    interface: str
    device: int
    version: int
    port: int

    @property
    def name(self) -> str:
        """The key of the descriptor in `Boot.asking`."""
        return f"{self.what} {self.interface} {self.version}"


def places(config: Config) -> list[AskingPlace]:
    """Return where clients ask by a configuration: at the inside interfaces that exist now."""
    if not config.portmap_wanted:
        return []
    wanted = [("pcp", PCP_PORT)] if {"pcp", "natpmp"} & {*config.portmap.protocols} else []
    if "upnp" in config.portmap.protocols:
        wanted += [("ssdp", SSDP_PORT), ("http", config.portmap.http_port)]
    versions = sorted({network.version for network in config.inside_networks})
    return [
        AskingPlace(what, name, index, version, port)
        for index, name in socket.if_nameindex()
        if any(_names(pattern, name) for pattern in config.network.inside_interfaces)
        for what, port in wanted
        for version in versions
    ]


def _names(pattern: str, interface: str) -> bool:
    """Whether a name as iptables has it (`eth+`) is that of an interface."""
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


class AskingSockets:
    """The sockets, and those of an earlier version: `inherited` by the name of their place."""

    def __init__(self, inherited: Mapping[str, int]) -> None:
        self._inherited = {name: socket.socket(fileno=fd) for name, fd in inherited.items()}
        self._sockets: dict[AskingPlace, socket.socket] = {}
        self._failed: set[AskingPlace] = set()  # of which the log has said so

    def fds(self) -> dict[str, int]:
        """Return the descriptors by the name of their place."""
        return {place.name: sock.fileno() for place, sock in self._sockets.items()}

    def open(self, config: Config) -> bool:
        """Open what is missing, and close what is not wanted any more. Returns whether something has changed. A socket
        that cannot be opened is logged, and tried again with the next call."""
        wanted = places(config)
        gone = [place for place in self._sockets if place not in wanted]
        for place in gone:
            self._sockets.pop(place).close()
        opened = 0
        for place in wanted:
            if place in self._sockets:
                continue
            try:
                self._sockets[place] = self._adopted(place) or _bound(place)
                opened += 1
                self._failed.discard(place)
            except OSError as error:
                if place not in self._failed:
                    self._failed.add(place)
                    log.warning("portmap.unbound", place=place.name, port=place.port, error=error.strerror)
        self._failed &= {*wanted}
        self._forget_inherited()
        return bool(gone or opened)

    def _adopted(self, place: AskingPlace) -> socket.socket | None:
        sock = self._inherited.pop(place.name, None)
        if sock is not None and (sock.getsockname()[1] != place.port or _index(sock) != place.device):
            sock.close()
            return None
        return sock

    def _forget_inherited(self) -> None:
        _close(self._inherited.values())
        self._inherited.clear()

    def close(self) -> None:
        """Close all of them."""
        _close(self._sockets.values())
        self._sockets.clear()


def _index(sock: socket.socket) -> int:
    name = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _bound(place: AskingPlace) -> socket.socket:
    family = socket.AF_INET6 if place.version == 6 else socket.AF_INET
    kind = socket.SOCK_STREAM if place.what == "http" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, place.interface.encode())
        if place.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if place.what != "pcp":  # other programs of the host hear SSDP too; a connection may be in TIME_WAIT
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if place.version == 6 else "0.0.0.0", place.port))
        if place.what == "http":
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()

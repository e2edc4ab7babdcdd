"""Whether an address is one of this host's own, and which of them the world sees."""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import dataclass

from alg.address import Address
from gateway.model.embedded import seen_through


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """Where pinholes of a flow listen (`local`, an address of this host) and what is told to the world."""

    local: str
    advertised: str


def public_address(outside: str, facing: str) -> PublicAddress:
    """`facing`, an address of this host, unless `network.outside` names another one ("auto" does not)."""
    if outside == "auto" or (":" in outside) != (":" in facing):
        return PublicAddress(facing, facing)
    # Behind a further, static translation the named address is not ours: packets for it arrive at the facing one.
    return PublicAddress(outside if is_local(outside) else facing, outside)


def is_local(host: str) -> bool:
    """Whether `host`, the text of an address, is one of this host's own (loopback and unspecified are), or embeds one.

    The kernel says, without privilege: a packet to one's own address is sent from that address. No packet is sent.
    ValueError for a name.
    """
    return any(_is_local(ip) for ip in seen_through(ipaddress.ip_address(host)))


class OwnAddresses:
    """`is_local`, asked of the kernel at most once in `lifetime` seconds for each address: a dial a time would cost a
    socket each."""

    def __init__(self, lifetime: float = 1.0, size: int = 4096) -> None:
        self._lifetime = lifetime
        self._size = size
        self._known: dict[str, tuple[float, bool]] = {}

    def has(self, host: str) -> bool:
        """Whether `host`, the text of an address, is or embeds one of this host's own. ValueError for a name."""
        now = time.monotonic()
        known = self._known.get(host)
        if known is not None and known[0] > now:
            return known[1]
        if len(self._known) >= self._size:
            self._known.clear()
        answer = is_local(host)
        self._known[host] = (now + self._lifetime, answer)
        return answer


def _is_local(ip: Address) -> bool:
    if ip.is_loopback or ip.is_unspecified:
        return True
    if isinstance(ip, ipaddress.IPv4Address):
        return _source_for(socket.AF_INET, (str(ip), 9)) == str(ip)
    # A link-local address means something only on a link, and which link is not known here: any.
    scopes = [index for index, _name in socket.if_nameindex()] if ip.is_link_local else [0]
    return any(_source_for(socket.AF_INET6, (str(ip), 9, 0, scope)) == str(ip) for scope in scopes)


def source_towards(host: str) -> str | None:
    """The address of this host that faces `host`, the text of an address; None where there is no route to it."""
    ip = ipaddress.ip_address(host)
    return _source_for(socket.AF_INET if ip.version == 4 else socket.AF_INET6, (host, 9))


def _source_for(family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]) -> str | None:
    """The address that the kernel would send from to `address`; None where there is no route."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)  # never blocks; keeps gevent from resolving the address in a thread
        try:
            probe.connect(address)
        except OSError:
            return None
        source: str = probe.getsockname()[0]
        return source.partition("%")[0]

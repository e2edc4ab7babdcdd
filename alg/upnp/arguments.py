"""Arguments of actions about mappings and pinholes: texts become numbers and addresses, or the error that the standard
has for it.

Clients differ. An argument that is missing or empty has a default where one is known: any host, enabled, no
description, and the duration 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from alg.address import canonical
from alg.upnp.elements import plain
from alg.upnp.errors import ActionError

LONGEST_DESCRIPTION = 256  # characters
LONGEST_LEASE = 86400  # seconds of a pinhole (WANIPv6FirewallControl:1, 2.4.3)
EVERY_PROTOCOL = 65535
PROTOCOLS: dict[int, Literal["tcp", "udp"]] = {6: "tcp", 17: "udp"}  # IANA's numbers

_NUMBER = re.compile(r"\+?[0-9]{1,20}")

Arguments = Mapping[str, str]


class MappingArguments(NamedTuple):
    """Arguments of AddPortMapping and AddAnyPortMapping. `remote` "": every host; `seconds` 0: for good; `external` 0:
    every port."""

    remote: str
    external: int
    transport: Literal["tcp", "udp"]
    internal: int
    client: str
    enabled: bool
    description: str
    seconds: int


class PinholeArguments(NamedTuple):
    """Arguments of AddPinhole and GetOutboundPinholeTimeout. `remote` "": every host; `remote_port` 0: every port."""

    remote: str
    remote_port: int
    client: str
    port: int
    transport: Literal["tcp", "udp"]


def number(arguments: Arguments, name: str, most: int, default: int | None = None) -> int:
    """Return a number from 0 to `most`. Raises ActionError: 402 if the argument is not a number, 601 if it is
    greater."""
    text = arguments.get(name, "")
    if not text and default is not None:
        return default
    if _NUMBER.fullmatch(text) is None:
        raise ActionError(402)
    value = int(text)
    if value > most:
        raise ActionError(601)
    return value


def transport(arguments: Arguments, name: str = "NewProtocol") -> Literal["tcp", "udp"]:
    """Return the protocol of a mapping. Raises ActionError(402)."""
    value = arguments.get(name, "").lower()
    if value == "tcp":
        return "tcp"
    if value == "udp":
        return "udp"
    raise ActionError(402)


def boolean(arguments: Arguments, name: str, default: bool) -> bool:
    """Return a boolean as UDA 1.1 (2.5) spells it. Raises ActionError(402)."""
    value = arguments.get(name, "").lower()
    if not value:
        return default
    if value in ("1", "true", "yes"):
        return True
    if value in ("0", "false", "no"):
        return False
    raise ActionError(402)


def address(arguments: Arguments, name: str, version: int) -> str:
    """Return an address of this IP version in its canonical text; "" if there is none, or "*". Raises ActionError(402)
    for names and addresses of the other version."""
    text = arguments.get(name, "")
    if text in ("", "*"):
        return ""
    try:
        found = canonical(text.strip("[]"))
    except ValueError:
        raise ActionError(402) from None
    if found.version != version or "%" in str(found):
        raise ActionError(402)
    return "" if found.is_unspecified else str(found)


def key(arguments: Arguments) -> tuple[str, int, Literal["tcp", "udp"]]:
    """Return what names a mapping: the remote host, the external port and the protocol."""
    return (
        address(arguments, "NewRemoteHost", 4),
        number(arguments, "NewExternalPort", 65535),
        transport(arguments),
    )


def mapping(arguments: Arguments) -> MappingArguments:
    """Read the arguments of AddPortMapping and AddAnyPortMapping. Raises ActionError: 402, 601, 732 (internal port
    0)."""
    remote, external, protocol = key(arguments)
    internal = number(arguments, "NewInternalPort", 65535)
    if not internal:
        raise ActionError(732)
    client = address(arguments, "NewInternalClient", 4)
    if not client:
        raise ActionError(402)
    return MappingArguments(
        remote,
        external,
        protocol,
        internal,
        client,
        boolean(arguments, "NewEnabled", True),
        plain(arguments.get("NewPortMappingDescription", ""), LONGEST_DESCRIPTION),
        # Greater than the variable may be, as 4294967295 for "infinite": for as long as can be had.
        min(number(arguments, "NewLeaseDuration", 1 << 64, 0), 0xFFFFFFFF),
    )


class PortRange(NamedTuple):
    """Arguments of DeletePortMappingRange and GetListOfPortMappings."""

    first: int
    last: int
    transport: Literal["tcp", "udp"]


def ports(arguments: Arguments) -> PortRange:
    """Read a range of external ports. Raises ActionError: 402, 601, 733 (the end is before the start)."""
    first, last = number(arguments, "NewStartPort", 65535), number(arguments, "NewEndPort", 65535)
    boolean(arguments, "NewManage", False)
    found = PortRange(first, last, transport(arguments))
    if last < first:
        raise ActionError(733)
    return found


def pinhole(arguments: Arguments) -> PinholeArguments:
    """Read the arguments of AddPinhole. Raises ActionError: 402, 601, 705 (a protocol that has no ports), 706, 707, 708
    (wildcards where none is permitted)."""
    remote = address(arguments, "RemoteHost", 6)
    remote_port = number(arguments, "RemotePort", 65535, 0)
    client = address(arguments, "InternalClient", 6)
    port = number(arguments, "InternalPort", 65535, 0)
    protocol = number(arguments, "Protocol", 65535)
    if protocol == EVERY_PROTOCOL:
        raise ActionError(707)
    if protocol not in PROTOCOLS:
        raise ActionError(705)
    if not port:
        raise ActionError(706)
    if not client:
        raise ActionError(708)
    return PinholeArguments(remote, remote_port, client, port, PROTOCOLS[protocol])


def lease(arguments: Arguments, name: str) -> int:
    """Return the seconds of a pinhole, 1 to LONGEST_LEASE. Raises ActionError: 402, 601."""
    seconds = number(arguments, name, LONGEST_LEASE)
    if not seconds:
        raise ActionError(601)
    return seconds

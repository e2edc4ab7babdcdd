"""Mappings as actions list them: the values of an entry, and the document of GetListOfPortMappings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from alg.upnp.elements import escape


class ListedMapping(NamedTuple):
    """A mapping. `remote` "": every host; `seconds` are those that are left."""

    remote: str
    external: int
    transport: str
    internal: int
    client: str
    description: str
    seconds: int

    def specific(self) -> tuple[object, ...]:
        """The values that GetSpecificPortMappingEntry returns."""
        return self.internal, self.client, 1, self.description, self.seconds

    def generic(self) -> tuple[object, ...]:
        """The values that GetGenericPortMappingEntry returns."""
        return self.remote, self.external, self.transport.upper(), *self.specific()


_NAMES = (
    "NewRemoteHost",
    "NewExternalPort",
    "NewProtocol",
    "NewInternalPort",
    "NewInternalClient",
    "NewEnabled",
    "NewDescription",
    "NewLeaseTime",
)


def port_listing(entries: Iterable[ListedMapping]) -> str:
    """Return the document of GetListOfPortMappings (WANIPConnection:2, 2.3.25)."""
    listed = "".join(
        "<p:PortMappingEntry>"
        + "".join(
            f"<p:{name}>{escape(str(value))}</p:{name}>" for name, value in zip(_NAMES, entry.generic(), strict=True)
        )
        + "</p:PortMappingEntry>"
        for entry in entries
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="urn:schemas-upnp-org:gw:'
        'WANIPConnection http://www.upnp.org/schemas/gw/WANIPConnection-v2.xsd">'
        f"{listed}</p:PortMappingList>\n"
    )

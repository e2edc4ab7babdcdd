"""The gateway as a device: three devices within each other, each with services (InternetGatewayDevice:1 and :2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from alg.upnp import services
from alg.upnp.elements import escape
from alg.upnp.services import UpnpService

NAMES = ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice")
"""The types of devices, from the outermost to the innermost."""


@dataclass(frozen=True)
class Device:
    """A root device of `version` 1 or 2: `uuids` of its three devices, what people read of it (`name`, `model`), and
    `folder`, the path of its pages, as "/TOKEN/1"."""

    version: int
    uuids: tuple[str, str, str]
    name: str
    model: str
    folder: str

    @property
    def description(self) -> str:
        """The path of its description."""
        return f"{self.folder}/root.xml"

    def types(self) -> tuple[str, ...]:
        """The URNs of its three devices."""
        return tuple(f"urn:schemas-upnp-org:device:{name}:{self.version}" for name in NAMES)

    def services(self) -> tuple[tuple[UpnpService, ...], ...]:
        """The services of each of its devices."""
        if self.version == 1:
            return (services.FORWARDING,), (services.INTERFACE,), (services.CONNECTION_1,)
        return (services.FORWARDING,), (services.INTERFACE,), (services.CONNECTION_2, services.FIREWALL)

    def all_services(self) -> Iterator[UpnpService]:
        """Return all services of the device and of the devices in it."""
        for several in self.services():
            yield from several

    def page(self, service: UpnpService, what: str) -> str:
        """The path of a service's page: `what` is "scpd", "control" or "events"."""
        return f"{self.folder}/{service.name}/{what}"

    @property
    def default_connection(self) -> str:
        """The value of Layer3Forwarding's DefaultConnectionService: the innermost device and its service."""
        connection = self.services()[2][0]
        return f"uuid:{self.uuids[2]}:WANConnectionDevice:{self.version},urn:upnp-org:serviceId:{connection.id}"

    def adverts(self) -> Iterator[tuple[str, str]]:
        """What SSDP says of it, as pairs: NT or ST, and USN (UDA 1.1, section 1.2.2)."""
        root = f"uuid:{self.uuids[0]}"
        yield "upnp:rootdevice", f"{root}::upnp:rootdevice"
        for uuid, type, several in zip(self.uuids, self.types(), self.services(), strict=True):
            yield f"uuid:{uuid}", f"uuid:{uuid}"
            for each in (type, *(service.type for service in several)):
                yield each, f"uuid:{uuid}::{each}"


@cache
def describe(device: Device) -> bytes:
    """Return the description of a root device (UDA 1.1, section 2.3). URLs in it are relative."""
    inner = ""
    for level in (2, 1, 0):
        listed = "".join(_service(device, service) for service in device.services()[level])
        inner = (
            f"<device><deviceType>{device.types()[level]}</deviceType>"
            f"<friendlyName>{escape(device.name)}</friendlyName>"
            "<manufacturer>algate</manufacturer>"
            "<modelDescription>Application-level gateway</modelDescription><modelName>algate</modelName>"
            f"<modelNumber>{escape(device.model)}</modelNumber><UDN>uuid:{device.uuids[level]}</UDN>\n"
            f"<serviceList>{listed}</serviceList>\n{f'<deviceList>{inner}</deviceList>' if inner else ''}</device>\n"
        )
    return (
        '<?xml version="1.0"?>\n<root xmlns="urn:schemas-upnp-org:device-1-0">'
        f"<specVersion><major>1</major><minor>{device.version - 1}</minor></specVersion>\n{inner}</root>\n"
    ).encode()


def _service(device: Device, service: UpnpService) -> str:
    return (
        f"<service><serviceType>{service.type}</serviceType><serviceId>urn:upnp-org:serviceId:{service.id}</serviceId>"
        f"<controlURL>{device.page(service, 'control')}</controlURL>"
        f"<eventSubURL>{device.page(service, 'events')}</eventSubURL>"
        f"<SCPDURL>{device.page(service, 'scpd')}</SCPDURL></service>\n"
    )

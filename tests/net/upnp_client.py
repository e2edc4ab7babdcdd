"""A client of UPnP that says what a test wants: it searches, reads descriptions, asks for actions and subscribes."""

from __future__ import annotations

import re
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.lab.lab import Lab, Role

IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:"
CONNECTION = "urn:schemas-upnp-org:service:WANIPConnection:"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
_NAME = "{urn:schemas-upnp-org:device-1-0}"


def search_message(target: str, host: str = "239.255.255.250:1900") -> bytes:
    """An M-SEARCH."""
    return f'M-SEARCH * HTTP/1.1\r\nHOST: {host}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'.encode()


def headers_of(answer: bytes) -> dict[str, str]:
    """The headers of an answer, their names in lower case."""
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def search(lab: Lab, role: Role, source: str, target: str, to: str = "239.255.255.250") -> Iterator[dict[str, str]]:
    """Search from an address, and return the answers as they come; ends a second and a half after the last one."""
    with lab.enter(role):
        sock = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        if ":" in source:
            with lab.enter(role):
                index = socket.if_nametoindex("eth0")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.bind((source, 0, 0, index))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
            sock.bind((source, 0))
        sock.settimeout(1.5)
        sock.sendto(search_message(target), (to, 1900))
        while True:
            try:
                yield headers_of(sock.recv(2000))
            except TimeoutError:
                return


class Answer(NamedTuple):
    """An answer of HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> int:
        """The code of an error of control; 0 if there is none."""
        found = re.search(rb"<errorCode>(\d+)</errorCode>", self.body)
        return int(found[1]) if found else 0

    def value(self, name: str) -> str:
        """A value of a control answer."""
        found = re.search(rf"<{name}>(.*?)</{name}>".encode(), self.body, re.DOTALL)
        assert found is not None, self.body
        return found[1].decode()


def exchange(lab: Lab, role: Role, url: str, data: bytes) -> Answer:
    """Send a request as it is, by a connection of its own, and read the answer to its end."""
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    with lab.connect(role, place.hostname, place.port, timeout=15) as sock:
        sock.sendall(data)
        said = b""
        while more := sock.recv(65536):
            said += more
            head, end, body = said.partition(b"\r\n\r\n")
            if end and len(body) >= int(headers_of(head + end).get("content-length", "0")):
                break
    head, _, body = said.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ")[1]), headers_of(head + b"\r\n\r\n"), body)


def request(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request of HTTP/1.1 that ends its connection."""
    place = urlsplit(url)
    lines = [f"{method} {place.path} HTTP/1.1"]
    fields = {"Host": place.netloc, "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Igd:
    """The gateway as a client of `role` finds it, by version of the device and by the address that it asks from."""

    def __init__(self, lab: Lab, role: Role, source: str, version: int = 1) -> None:
        self.lab, self.role, self.source = lab, role, source
        group = "ff02::c" if ":" in source else "239.255.255.250"
        self.location = lab.wait_for(
            lambda: next((device["location"] for device in search(lab, role, source, f"{IGD}{version}", group)), ""),
            10,
            "an answer to a search",
        )
        answer = exchange(lab, role, self.location, request("GET", self.location, {}))
        assert answer.status == 200, answer
        place = urlsplit(self.location)
        self.base = f"http://{place.netloc}"
        self.pages: dict[str, dict[str, str]] = {}
        for service in ET.fromstring(answer.body).iter(f"{_NAME}service"):
            fields = {field.tag.removeprefix(_NAME): field.text or "" for field in service}
            self.pages[fields["serviceType"]] = fields

    def url(self, service: str, page: str) -> str:
        """The URL of a page: `page` is "controlURL", "eventSubURL" or "SCPDURL"."""
        return self.base + self.pages[service][page]

    def ask(self, service: str, action: str, **given: object) -> Answer:
        """Ask for an action."""
        url = self.url(service, "controlURL")
        return exchange(self.lab, self.role, url, soap(url, service, action, given))

    def add(self, port: int, public: int, transport: str = "TCP", client: str = "", seconds: int = 3600) -> Answer:
        """AddPortMapping."""
        return self.ask(
            self.connection,
            "AddPortMapping",
            **mapping_arguments(port, public, transport, client or self.source, seconds),
        )

    def delete(self, public: int, transport: str = "TCP") -> Answer:
        """DeletePortMapping."""
        given = {"NewRemoteHost": "", "NewExternalPort": public, "NewProtocol": transport}
        return self.ask(self.connection, "DeletePortMapping", **given)

    @property
    def connection(self) -> str:
        """The type of the service that has mappings."""
        return next(service for service in self.pages if service.startswith(CONNECTION))


def mapping_arguments(port: int, public: int, transport: str, client: str, seconds: int) -> dict[str, object]:
    """The arguments of AddPortMapping."""
    return {
        "NewRemoteHost": "",
        "NewExternalPort": public,
        "NewProtocol": transport,
        "NewInternalPort": port,
        "NewInternalClient": client,
        "NewEnabled": 1,
        "NewPortMappingDescription": "test",
        "NewLeaseDuration": seconds,
    }


def soap(url: str, service: str, action: str, given: Mapping[str, object], **headers: str) -> bytes:
    """A request for an action."""
    return request(
        "POST",
        url,
        {"Content-Type": "text/xml", "SOAPAction": f'"{service}#{action}"', **headers},
        envelope(service, action, given),
    )


def envelope(service: str, action: str, given: Mapping[str, object]) -> bytes:
    """The body of a request for an action."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{inner}</u:{action}></s:Body></s:Envelope>'
    ).encode()

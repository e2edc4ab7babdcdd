"""What plays dialogues of UPnP: the pages of a gateway over a table of mappings, without a broker and sockets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from alg.address import Endpoint, is_private
from alg.upnp import ssdp
from alg.upnp.device import Device
from alg.upnp.elements import escape, read
from alg.upnp.errors import HttpError
from alg.upnp.gena import Subscription, Subscriptions
from alg.upnp.http import RequestReader
from alg.upnp.services import UpnpService
from alg.upnp.ssdp import Speaker
from gateway.front.portmap.igd import Igd
from gateway.front.portmap.pages import Pages
from gateway.front.portmap.table import Mapping as PortMapping
from gateway.front.portmap.table import MappingKey, MappingLimits, MappingRequest, MappingTable, Refusal
from gateway.model.requests import Transport

PUBLIC = "203.0.113.2"
OWN = Endpoint("192.168.56.2", 2869)
DEVICES = {
    version: Device(
        version, (f"{version}-igd", f"{version}-wan", f"{version}-connection"), "algate", "1", f"/secret/{version}"
    )
    for version in (1, 2)
}


class Broker:
    """Opens every port that is free, as the mapper does with the broker's answers."""

    def __init__(self, limits: MappingLimits | None = None) -> None:
        self.table = MappingTable(limits or MappingLimits())
        self.now = 0.0
        self.taken: set[tuple[Transport, int]] = set()
        self._numbers = iter(range(1, 1 << 30))

    def map(self, request: MappingRequest) -> PortMapping:
        """See `gateway.front.portmap.igd.Mapper.map`."""
        there = self.table.check(request)
        public = there.public if there is not None else self._choose(request)
        if request.exact and public.port != request.suggested_port:
            raise Refusal("taken", "the socket has another port")
        hold = self.table.wanted(request, self.now)
        hold.lease = str(next(self._numbers))
        return self.table.hold(request, public, hold)

    def unmap(self, key: MappingKey, name: str, credential: str = "") -> None:
        """See `gateway.front.portmap.igd.Mapper.unmap`."""
        self.table.release(key, name, credential)

    def translates(self, client: str) -> bool:
        """See `gateway.front.portmap.igd.Mapper.translates`."""
        return is_private(ipaddress.ip_address(client))

    def _choose(self, request: MappingRequest) -> Endpoint:
        if ":" in request.client:
            return Endpoint(request.client, request.port)
        used = {(mapping.transport, mapping.public.port) for mapping in self.table} | self.taken
        suggested = self.table.suggestion(request)
        if (request.transport, suggested) not in used:
            return Endpoint(PUBLIC, suggested)
        if request.exact:
            raise Refusal("taken", f"{suggested} is another's")
        return Endpoint(PUBLIC, next(port for port in range(40000, 65536) if (request.transport, port) not in used))


class Truth:
    """Facts that a test chooses."""

    def __init__(self, broker: Broker) -> None:
        self.address = PUBLIC
        self.came = 0
        self._broker = broker

    def external(self) -> str:
        return self.address

    def uptime(self) -> int:
        return 42

    def total(self, what: str) -> int:
        return {"tx_bytes": 1 << 33, "rx_bytes": 7}.get(what, 1)

    def rate(self) -> int:
        return 1_000_000_000

    def outbound_timeout(self, transport: Transport) -> int:
        return {"tcp": 432000, "udp": 120}[transport]

    def packets(self, mapping: PortMapping) -> int:
        return self.came

    def now(self) -> float:
        return self._broker.now


class Recorder:
    """Keeps what a subscriber would be told."""

    def __init__(self) -> None:
        self.subscriptions = Subscriptions()
        self.welcomed: list[Subscription] = []

    def welcome(self, subscription: Subscription) -> None:
        self.welcomed.append(subscription)


class House:
    """A gateway with its pages."""

    def __init__(self, limits: MappingLimits | None = None) -> None:
        self.broker = Broker(limits)
        self.facts = Truth(self.broker)
        self.recorder = Recorder()
        self.igd = Igd(self.broker, self.facts, DEVICES)
        self.pages = Pages(list(DEVICES.values()), self.igd, self.recorder, "Linux UPnP/1.1 algate/1")

    def say(self, pieces: Iterator[bytes], client: str, own: Endpoint = OWN) -> bytes:
        """Send pieces of a stream, and return all answers until the connection would end."""
        reader, said = RequestReader(), b""
        for piece in pieces:
            reader.feed(piece)
            while True:
                try:
                    request = reader.next()
                except HttpError as error:
                    return said + self.pages.refusal(error)
                if request is None:
                    break
                answer = self.pages.answer(request, client, own, self.broker.now)
                said += answer
                if b"\r\nConnection: close\r\n" in answer:
                    return said
        return said

    def mappings(self) -> list[str]:
        """What is open, as dialogues say it."""
        return [
            f"{mapping.transport} {mapping.public.port} {mapping.target} {' '.join(mapping.holds)}"
            for mapping in self.broker.table
        ]


def service_of(text: str) -> tuple[Device, UpnpService]:
    """The service `NAME:VERSION`, or `NAME:VERSION@DEVICE` where both devices have it."""
    name, _, version = text.partition("@")
    for device in DEVICES.values():
        for service in device.all_services():
            if f"{service.name}:{service.version}" == name and version in ("", str(device.version)):
                return device, service
    raise AssertionError(text)


def soap_request(
    device: Device, service: UpnpService, action: str, given: Mapping[str, str], host: Endpoint = OWN
) -> bytes:
    """An ordinary request for an action."""
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in given.items())
    body = (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service.type}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()
    head = (
        f"POST {device.page(service, 'control')} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f'Content-Type: text/xml\r\nSOAPAction: "{service.type}#{action}"\r\n\r\n'
    )
    return head.encode() + body


_PLACES = re.compile(r"\{(root|type|control|events|scpd|body|length|chunk)\}")


def filled(text: str, device: Device, service: UpnpService, body: Callable[[], bytes]) -> bytes:
    """Data with escapes, in which `{control}` and others stand for the pages of a service."""

    def place(found: re.Match[str]) -> str:
        if found[1] == "body":
            return body().decode("latin-1")
        if found[1] == "length":
            return str(len(body()))
        if found[1] == "chunk":
            return f"{len(body()):x}"
        if found[1] == "type":
            return service.type
        return device.description if found[1] == "root" else device.page(service, found[1])

    return _PLACES.sub(place, text.encode("latin-1").decode("unicode_escape")).encode("latin-1")


def outcome(answers: bytes) -> str:
    """The status of each answer, with the code of an error and the values of an action."""
    said = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        body, answers = rest[:length], rest[length:]
        words = [head.split(b" ")[1].decode()]
        if b"<s:Body>" in body:
            inner = read(body).children[0].children[0]
            if inner.name == "Fault":
                found = re.search(rb"<errorCode>(\d+)", body)
                assert found is not None
                words.append(found[1].decode())
            else:
                words += [f"{value.name}={value.text}" for value in inner.children if not value.text.startswith("<")]
        said.append(" ".join(words))
    return " ; ".join(said)


def found_by(search: bytes, announced: Sequence[int] = (1, 2)) -> list[str]:
    """What a search finds: for each answer its ST, the version of the device, and the USN."""
    wanted = ssdp.read_search(search)
    if wanted is None:
        return ["nothing"]
    devices = [DEVICES[version] for version in announced]
    said = []
    for answer in ssdp.answers(wanted, Speaker(devices, f"http://{OWN}", "algate", 1), "now"):
        headers = dict(line.split(": ", 1) for line in answer.decode().split("\r\n")[1:] if ": " in line)
        said.append(f"{headers['ST']} {headers['LOCATION'].split('/')[-2]} {headers['USN']}")
    return said

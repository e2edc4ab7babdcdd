"""UPnP IGD put together: discovery, pages, actions and events over the table of mappings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gevent
import gevent.socket as gsocket
import msgspec

from alg.address import Endpoint
from alg.upnp.device import Device
from alg.upnp.http import Request
from alg.upnp.services import UpnpService
from alg.upnp.ssdp import Speaker
from gateway.front.portmap.events import EventSender
from gateway.front.portmap.http import HttpServer
from gateway.front.portmap.igd import Facts, Igd, Mapper
from gateway.front.portmap.machine import secret
from gateway.front.portmap.pages import Pages
from gateway.front.portmap.ssdp import Corner, Ssdp, is_inside
from gateway.front.portmap.table import MappingEvent
from gateway.model.requests import Network


class UpnpSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What the front is told by the configuration. `announced`: the version of the device that is announced; `port` of
    the pages; `inside`: the networks of clients; `instance` distinguishes gateways of one host; `version` and `name`
    are for people."""

    announced: int
    port: int
    inside: Sequence[Network]
    instance: str
    version: str
    name: str = "algate"


class Identify(NamedTuple):
    """Which addresses are one host: `host` says it of one that has a connection here, `rate` of one that has sent a
    datagram only, of which less may be known."""

    host: Callable[[str], str]
    rate: Callable[[str], str]


class UpnpFront:
    """Serves UPnP over `mapper`: discovery at `corners`, and pages by `listeners`, which are bound to inside interfaces
    too."""

    def __init__(
        self,
        setting: UpnpSetting,
        mapper: Mapper,
        facts: Facts,
        corners: Sequence[Corner],
        listeners: Sequence[gsocket.socket],
        identify: Identify,
    ) -> None:
        self._setting = setting
        self._listeners = listeners
        made = {version: _device(version, setting) for version in (1, 2)}
        announced = made[setting.announced]
        self._devices = (announced, *(device for device in made.values() if device is not announced))
        self._igd = Igd(mapper, facts, made)
        self._pages_of_events: dict[str, tuple[Device, UpnpService]] = {
            device.page(service, "events"): (device, service)
            for device in self._devices
            for service in device.all_services()
        }
        self._server = f"Linux UPnP/1.1 algate/{setting.version}"
        self._boot = int(time.time())
        self._events = EventSender(self._state, identify.host)
        self._pages = Pages(self._devices, self._igd, self._events, self._server)
        self._http = HttpServer(self._admits, self._answer, self._pages.refusal, identify.host)
        self._ssdp = Ssdp(corners, setting.inside, self._speak, identify.rate)
        mapper.table.listeners.append(self._changed)

    def run(self) -> None:
        """Begin to serve; returns at once."""
        gevent.spawn(self._events.run)
        for listener in self._listeners:
            gevent.spawn(self._http.serve, listener)
        gevent.spawn(self._ssdp.run)

    def stop(self) -> None:
        """Tell clients that the gateway is not there any more."""
        self._ssdp.stop()

    def status(self) -> dict[str, int]:
        """Return numbers for `algate status`."""
        return {
            "upnp_searches": self._ssdp.searches,
            "upnp_requests": self._http.requests,
            "upnp_refused": self._ssdp.refused + self._http.refused,
            "upnp_subscriptions": len(self._events.subscriptions),
        }

    def _changed(self, _event: MappingEvent) -> None:
        self._events.changed()

    def _state(self, page: str) -> Mapping[str, object]:
        return self._igd.state(*self._pages_of_events[page])

    def _answer(self, request: Request, client: str, own: Endpoint) -> bytes:
        return self._pages.answer(request, client, own, time.monotonic())

    def _speak(self, host: str) -> Speaker:
        # Version 1 knows nothing of IPv6: whoever searches there wants pinholes.
        devices = self._devices if ":" not in host else [device for device in self._devices if device.version == 2]
        return Speaker(devices, f"http://{Endpoint(host, self._setting.port)}", self._server, self._boot)

    def _admits(self, address: tuple[object, ...]) -> bool:
        return is_inside(self._setting.inside, address)


def _device(version: int, setting: UpnpSetting) -> Device:
    """Return a root device whose names are the same after each start, and cannot be guessed from outside."""

    def digits_of(what: str) -> str:
        return secret(f"upnp {setting.instance} {version} {what}").hex()

    def uuid(what: str) -> str:
        digits = digits_of(what)
        return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"

    uuids = uuid("InternetGatewayDevice"), uuid("WANDevice"), uuid("WANConnectionDevice")
    return Device(version, uuids, setting.name, setting.version, f"/{digits_of('path')[:32]}/{version}")

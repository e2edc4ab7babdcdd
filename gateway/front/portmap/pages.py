"""The pages of the gateway's devices: descriptions, control, events. Which requests are answered at all.

A request has to name the very address at which it arrived, and neither a name (DNS rebinding) nor another port. It must
not come from a page of the web (Origin), and finds pages only below a path that SSDP alone tells, which no page of the
web can hear. A control request needs the header SOAPACTION, which a page of another origin can send only after a
question (OPTIONS) that is refused.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Protocol

from alg.address import Endpoint
from alg.upnp import device as devices_
from alg.upnp import gena, services, soap
from alg.upnp.device import Device
from alg.upnp.errors import ActionError, HttpError
from alg.upnp.gena import Renew, Subscribe, Subscription, Subscriptions
from alg.upnp.http import Request, response
from alg.upnp.services import UpnpService
from gateway.observe.log import get_logger

log = get_logger()

XML = ("Content-Type", 'text/xml; charset="utf-8"')

_ABSOLUTE = re.compile(r"http://([^/?#]*)(/.*)?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9.]{7,15})(?::([0-9]{1,5}))?")


class Actions(Protocol):
    """Carries out actions (`gateway.front.portmap.igd.Igd`)."""

    def act(
        self, device: Device, service: UpnpService, action: str, given: Mapping[str, str], client: str
    ) -> Sequence[object]:
        """Return the values of an action. Raises ActionError."""


class Events(Protocol):
    """Notifies subscribers."""

    @property
    def subscriptions(self) -> Subscriptions:
        """All subscriptions."""

    def welcome(self, subscription: Subscription) -> None:
        """Tell a new subscriber all variables, soon."""


class Pages:
    """All pages of UPnP. `server`: the name of the gateway in the header Server."""

    def __init__(self, devices: Sequence[Device], actions: Actions, events: Events, server: str) -> None:
        self._actions = actions
        self._events = events
        self._headers = [("Server", server)]
        self._documents: dict[str, bytes] = {}
        self._controls: dict[str, tuple[Device, UpnpService]] = {}
        self._eventing: set[str] = set()
        for device in devices:
            self._documents[device.description] = devices_.describe(device)
            for service in device.all_services():
                self._documents[device.page(service, "scpd")] = services.describe(service)
                self._controls[device.page(service, "control")] = device, service
                self._eventing.add(device.page(service, "events"))

    def answer(self, request: Request, client: str, own: Endpoint, now: float) -> bytes:
        """Return the answer to a request of `client` that arrived at `own`. Waits where an action waits."""
        try:
            return self._answer(request, client, own, now)
        except HttpError as error:
            return self.refusal(error)

    def refusal(self, error: HttpError) -> bytes:
        """Return an answer that refuses; the connection ends with it."""
        return response(error.status, headers=self._headers)

    def _answer(self, request: Request, client: str, own: Endpoint, now: float) -> bytes:
        path = self._checked(request, client, own)
        method = request.method
        if path in self._documents:
            if method not in ("GET", "HEAD"):
                raise HttpError(405)
            headers = [XML, *self._headers]
            return response(200, self._documents[path], headers, keeps=request.keeps, head=method == "HEAD")
        if path in self._controls:
            if method != "POST":
                raise HttpError(405)
            return self._control(request, *self._controls[path], client)
        if path in self._eventing:
            if method not in ("SUBSCRIBE", "UNSUBSCRIBE"):
                raise HttpError(405)
            return self._subscribe(request, path, client, now)
        raise HttpError(404)

    def _checked(self, request: Request, client: str, own: Endpoint) -> str:
        """Return the path, if the request may be answered. Raises HttpError."""
        path, names = request.target, [request.headers.get("host")]
        absolute = _ABSOLUTE.fullmatch(path)
        if absolute is not None:
            names.append(absolute[1])
            path = absolute[2] or "/"
        for name in names:
            if name is None:
                raise HttpError(400)
            if not _names(name, own):
                log.warning("portmap.rebinding", client=client, host=name[:100])
                raise HttpError(404)
        if "origin" in request.headers:
            log.warning(
                "portmap.web_page", client=client, origin=request.headers["origin"][:100], method=request.method
            )
            raise HttpError(403)
        return path

    def _control(self, request: Request, device: Device, service: UpnpService, client: str) -> bytes:
        header = request.headers.get("soapaction")
        if header is None:
            raise HttpError(400)
        try:
            call = soap.read_call(header, request.body)
            if not service.goes_by(call.service) or call.action not in service.actions:
                raise ActionError(401)
            values = self._actions.act(device, service, call.action, call.arguments, client)
            status, body = 200, soap.answer(service, call.action, values, call.service)
        except ActionError as error:
            status, body = 500, soap.fault(error)
        return response(status, body, [XML, ("EXT", ""), *self._headers], keeps=request.keeps)

    def _subscribe(self, request: Request, path: str, client: str, now: float) -> bytes:
        asked = gena.read_subscription(request, client)
        subscriptions = self._events.subscriptions
        if isinstance(asked, Subscribe):
            found = subscriptions.add(f"uuid:{_uuid()}", client, path, asked, now)
            self._events.welcome(found)
        elif isinstance(asked, Renew):
            found = subscriptions.renew(asked, client, path, now)
        else:
            subscriptions.remove(asked.sid, client, path, now)
            return response(200, headers=self._headers, keeps=request.keeps)
        granted = [("SID", found.sid), ("TIMEOUT", f"Second-{asked.seconds}")]
        return response(200, headers=[*granted, *self._headers], keeps=request.keeps)


def _names(text: str, own: Endpoint) -> bool:
    """Whether the text of a Host header is this address and port. Some clients leave the port out."""
    found = _HOST.fullmatch(text)
    if found is None:
        return False
    try:
        return Endpoint.of(found[1].strip("[]"), int(found[2] or own.port)) == own
    except ValueError:
        return False


def _uuid() -> str:
    digits = secrets.token_hex(16)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"

"""Events of UPnP: subscriptions of clients, and the messages with which they are notified (GENA; UDA 1.1, section
4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from alg.address import Endpoint
from alg.upnp.elements import escape
from alg.upnp.errors import HttpError
from alg.upnp.http import Request

LEAST_SECONDS = 1800
MOST_SECONDS = 7200
MOST_SUBSCRIPTIONS = 64
MOST_OF_A_HOST = 8  # two programs that each subscribe to the four services of version 2
MOST_CALLBACKS = 2
LONGEST_PATH = 512
LOWEST_PORT = 1024

_CALLBACK = re.compile(r"<([^<>]*)>")
_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]{2,45}\]|[0-9.]{7,15})(?::([0-9]{1,5}))?(/[!-~]*)?", re.IGNORECASE)
_TIMEOUT = re.compile(r"second-([0-9]{1,10}|infinite)", re.IGNORECASE)


class Callback(NamedTuple):
    """The URL at which a subscriber is notified."""

    endpoint: Endpoint
    path: str


class Subscribe(NamedTuple):
    """A new subscription; `callbacks` are to be tried in their order."""

    callbacks: tuple[Callback, ...]
    seconds: int


class Renew(NamedTuple):
    sid: str
    seconds: int


class Unsubscribe(NamedTuple):
    sid: str


def read_subscription(request: Request, client: str) -> Subscribe | Renew | Unsubscribe:
    """Read a SUBSCRIBE or UNSUBSCRIBE of the host `client`. Raises HttpError: 400 and 412 as in UDA 1.1 (4.1.2 to
    4.1.4); 412 also if no URL of CALLBACK is one of this client itself, by its address, at a port from 1024 on
    (CVE-2020-12695: a gateway that can be told to connect anywhere)."""
    sid, kind, callback = (request.headers.get(name) for name in ("sid", "nt", "callback"))
    if sid is not None and (kind is not None or callback is not None):
        raise HttpError(400)
    if request.method == "UNSUBSCRIBE":
        if not sid:
            raise HttpError(412)
        return Unsubscribe(sid)
    seconds = _seconds(request.headers.get("timeout", ""))
    if sid is not None:
        if not sid:
            raise HttpError(412)
        return Renew(sid, seconds)
    if kind != "upnp:event" or callback is None:
        raise HttpError(412)
    callbacks = tuple(_callbacks(callback, client))
    if not callbacks:
        raise HttpError(412)
    return Subscribe(callbacks[:MOST_CALLBACKS], seconds)


def _seconds(text: str) -> int:
    found = _TIMEOUT.fullmatch(text.strip())
    if found is None:
        return LEAST_SECONDS
    asked = MOST_SECONDS if found[1].lower() == "infinite" else int(found[1])
    return max(LEAST_SECONDS, min(asked, MOST_SECONDS))


def _callbacks(text: str, client: str) -> Iterator[Callback]:
    for url in _CALLBACK.findall(text)[: 4 * MOST_CALLBACKS]:
        found = _URL.fullmatch(url)
        if found is None:
            continue
        try:
            endpoint = Endpoint.of(found[1].strip("[]"), int(found[2] or 80))
        except ValueError:
            continue
        path = found[3] or "/"
        if endpoint.host == client and endpoint.port >= LOWEST_PORT and len(path) <= LONGEST_PATH:
            yield Callback(endpoint, path)


def event(callback: Callback, sid: str, number: int, variables: Mapping[str, object]) -> bytes:
    """Return the request that tells a subscriber these variables (4.3.2). `number` is that of the event: 0 for the
    first, which has all variables."""
    properties = "".join(
        f"<e:property><{name}>{escape(str(value))}</{name}></e:property>" for name, value in variables.items()
    )
    body = (
        f'<?xml version="1.0"?>\n<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0">{properties}</e:propertyset>\n'
    ).encode()
    head = (
        f"NOTIFY {callback.path} HTTP/1.1\r\nHOST: {callback.endpoint}\r\n"
        f'CONTENT-TYPE: text/xml; charset="utf-8"\r\nCONTENT-LENGTH: {len(body)}\r\n'
        f"NT: upnp:event\r\nNTS: upnp:propchange\r\nSID: {sid}\r\nSEQ: {number}\r\nCONNECTION: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


@dataclass(slots=True)
class Subscription:
    """A subscription of `client` to a service of the page `page`, until `ends` (monotonic seconds). `number` is that of
    the next event."""

    sid: str
    client: str
    page: str
    callbacks: tuple[Callback, ...]
    ends: float
    number: int = 0
    failures: int = 0

    def next_number(self) -> int:
        """Return the number of the next event, and count on: 0, 1, ..., 4294967295, 1 (4.3.2)."""
        number = self.number
        self.number = 1 if number >= 0xFFFFFFFF else number + 1
        return number


def _same(address: str) -> str:
    return address


class Subscriptions:
    """All subscriptions: MOST_SUBSCRIPTIONS at most, MOST_OF_A_HOST of one host. Pure: the time is an argument.
    `identify` says which addresses are one host. A subscription whose client is being notified (between `begin` and
    `end`) counts even after it has ended, because otherwise a host that accepts no connection could cause ever more
    notifications."""

    def __init__(self, identify: Callable[[str], str] = _same) -> None:
        self._identify = identify
        self._all: dict[str, Subscription] = {}
        self._telling: Counter[str] = Counter()  # by host

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sid: str, client: str, page: str, asked: Subscribe, now: float) -> Subscription:
        """Add a subscription. Raises HttpError(503) where there are too many."""
        self.drop_ended(now)
        # A program that was started again forgot its subscription; the same URL takes it over.
        for old in [
            subscription
            for subscription in self._all.values()
            if (subscription.client, subscription.page) == (client, page)
        ]:
            if old.callbacks == asked.callbacks:
                del self._all[old.sid]
        host = self._identify(client)
        of_host = sum(self._identify(subscription.client) == host for subscription in self._all.values())
        if len(self._all) >= MOST_SUBSCRIPTIONS or of_host >= MOST_OF_A_HOST:
            raise HttpError(503)
        if self._telling.total() >= MOST_SUBSCRIPTIONS or self._telling[host] >= MOST_OF_A_HOST:
            raise HttpError(503)
        self._all[sid] = Subscription(sid, client, page, asked.callbacks, now + asked.seconds)
        return self._all[sid]

    def begin(self, client: str) -> str:
        """Note that a notification of this client begins. Returns the argument for `end`."""
        host = self._identify(client)
        self._telling[host] += 1
        return host

    def end(self, host: str) -> None:
        """Note that the subscriber has been notified, or could not be."""
        self._telling[host] -= 1
        if not self._telling[host]:
            del self._telling[host]

    def renew(self, asked: Renew, client: str, page: str, now: float) -> Subscription:
        """Prolong a subscription of this client. Raises HttpError(412) if there is none."""
        found = self._own(asked.sid, client, page, now)
        found.ends = now + asked.seconds
        return found

    def remove(self, sid: str, client: str, page: str, now: float) -> None:
        """End a subscription of this client. Raises HttpError(412) if there is none."""
        del self._all[self._own(sid, client, page, now).sid]

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription whose client is gone."""
        if self._all.get(subscription.sid) is subscription:
            del self._all[subscription.sid]

    def drop_ended(self, now: float) -> None:
        """Forget the subscriptions whose time is over."""
        for sid in [sid for sid, subscription in self._all.items() if subscription.ends <= now]:
            del self._all[sid]

    def all(self, now: float) -> list[Subscription]:
        """Return all subscriptions."""
        self.drop_ended(now)
        return list(self._all.values())

    def of(self, page: str, now: float) -> list[Subscription]:
        """Return the subscriptions to a service."""
        self.drop_ended(now)
        return [subscription for subscription in self._all.values() if subscription.page == page]

    def holds(self, subscription: Subscription) -> bool:
        """Whether a subscription is still there."""
        return self._all.get(subscription.sid) is subscription

    def _own(self, sid: str, client: str, page: str, now: float) -> Subscription:
        self.drop_ended(now)
        found = self._all.get(sid)
        if found is None or found.client != client or found.page != page:
            raise HttpError(412)
        return found

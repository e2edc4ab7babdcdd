"""Events of UPnP: notifies subscribers of changes, over connections to their own addresses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import gevent
import gevent.socket as gsocket
from gevent.event import Event as Flag

from alg.upnp.gena import Callback, Subscription, Subscriptions, event
from gateway.observe.log import get_logger

log = get_logger()

MODERATION = 0.5  # seconds between a change and what is told of it: many changes are told together
TIMEOUT = 5.0  # seconds for a subscriber to take an event
MOST_FAILURES = 3  # in a row; then a subscription is forgotten
_STATUS = len("HTTP/1.1 200")  # bytes that say how an event was taken
WELCOME = 0.05  # seconds after the answer to a subscription (UDA 1.1, 4.1.2: the first event comes after it)

State = Callable[[str], Mapping[str, object]]
Identify = Callable[[str], str]


class EventSender:
    """Notifies subscribers. `state(page)` returns the current variables of the service at a page of events; `identify`
    says which addresses are one host."""

    def __init__(self, state: State, identify: Identify) -> None:
        self.subscriptions = Subscriptions(identify)
        self._state = state
        self._sent: dict[str, dict[str, object]] = {}  # by page
        self._changed = Flag()
        self._queues: dict[str, list[dict[str, object]]] = {}  # by sid, what is to be told
        self.sent = self.failed = 0

    def changed(self) -> None:
        """Something may have changed. Does not wait."""
        self._changed.set()

    def welcome(self, subscription: Subscription) -> None:
        """Tell a new subscriber all variables, soon."""
        values = dict(self._state(subscription.page))
        self._sent.setdefault(subscription.page, dict(values))
        self._tell(subscription, values)

    def run(self) -> None:
        """Tell of changes, for ever."""
        while True:
            self._changed.wait()
            gevent.sleep(MODERATION)
            self._changed.clear()
            for page in {subscription.page for subscription in self.subscriptions.all(time.monotonic())}:
                now, before = dict(self._state(page)), self._sent.get(page, {})
                news = {name: value for name, value in now.items() if before.get(name) != value}
                self._sent[page] = now
                if news:
                    for subscription in self.subscriptions.of(page, time.monotonic()):
                        self._tell(subscription, news)

    def _tell(self, subscription: Subscription, values: dict[str, object]) -> None:
        queue = self._queues.get(subscription.sid)
        if queue is None:
            self._queues[subscription.sid] = [values]
            gevent.spawn(self._send_all, subscription)
        elif len(queue) > 1:
            queue[-1].update(values)  # it is slow: what waits is told at once
        else:
            queue.append(values)

    def _send_all(self, subscription: Subscription) -> None:
        queue = self._queues[subscription.sid]
        host = self.subscriptions.begin(subscription.client)
        try:
            if not subscription.number:
                gevent.sleep(WELCOME)
            while queue and self.subscriptions.holds(subscription):
                values = queue[0]
                number = subscription.next_number()
                if any(_send(callback, subscription.sid, number, values) for callback in subscription.callbacks):
                    subscription.failures = 0
                    self.sent += 1
                else:
                    subscription.failures += 1
                    self.failed += 1
                    if subscription.failures >= MOST_FAILURES:
                        self.subscriptions.drop(subscription)
                        log.info("portmap.unsubscribed", client=subscription.client, reason="it takes no events")
                del queue[0]
        finally:
            del self._queues[subscription.sid]
            self.subscriptions.end(host)


def _send(callback: Callback, sid: str, number: int, values: Mapping[str, object]) -> bool:
    """Send an event. Returns whether the subscriber accepted it."""
    try:
        with gevent.Timeout(TIMEOUT, TimeoutError("too slow")):
            sock = gsocket.create_connection(callback.endpoint)
            with sock:
                sock.sendall(event(callback, sid, number, values))
                answer = b""
                while len(answer) < _STATUS and (part := sock.recv(64)):
                    answer += part
    except OSError:
        return False
    return answer.startswith(b"HTTP/1.") and answer[9:10] == b"2"

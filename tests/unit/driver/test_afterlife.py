"""What a running call has told others of outlives its flow, and ends with the call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gevent
import pytest
from structlog.testing import capture_logs

from alg.address import Endpoint
from alg.api import (
    Activity,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    OpenConversation,
    Opened,
    Received,
    Revoke,
    Tick,
)
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.relay.splice import Relay
from tests.unit.driver.driven import Driven, Plain, SlowBackend


class Kernel(SlowBackend):
    """Opens every conversation."""

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        assert isinstance(request, PinholeRequest)
        self.asked += 1
        public = Endpoint("203.0.113.2", 40000)
        lease = Lease(
            "p1",
            request.flow,
            request.reason,
            request.client,
            "in",
            "udp",
            public,
            request.target,
            None,
            0.0,
            "kernel",
            "conversation",
        )
        self.open_now.add(lease.id)
        done(lease)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return dict.fromkeys(leases, (1, 2))


class Caller(Plain):
    """Opens a conversation with the first byte. "FAIL" raises, "BYPASS" and "REVOKE" do so."""

    outlives = True
    look_every = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.talks = True
        self.ends_at: float | None = None

    def lives_on(self) -> bool:
        return self.talks

    def deadline(self) -> float | None:
        return self.ends_at

    def handle(self, event: Event) -> Sequence[Command]:
        self.events.append(event)
        if isinstance(event, Tick):
            self.talks, self.ends_at = False, None
            return [ClosePinhole(1)]
        if isinstance(event, Closed):
            return [CloseWrite(event.side.other)]
        if not isinstance(event, Received):
            return ()
        if event.data == b"FAIL":
            raise ValueError("on purpose")
        out: list[Command] = [Deliver(event.side.other, event.data)]
        if event.data == b"CALL":
            out.append(OpenConversation(1, Endpoint("192.0.2.1", 4000), 4001, (), 300.0, "sip.rtp"))
        elif event.data in (b"BYPASS", b"REVOKE"):
            out += (Revoke("test"), Bypass()) if event.data == b"REVOKE" else (Bypass(),)
        return out


def until(what: Callable[[], object]) -> None:
    with gevent.Timeout(10, AssertionError("it does not come")):
        while not what():
            gevent.sleep(0.005)


def in_a_call(relay: Relay) -> tuple[Driven, Caller]:
    module = Caller()
    driven = Driven(relay, module, backend=Kernel())
    driven.client.sendall(b"CALL")
    assert driven.server.recv(10) == b"CALL"
    until(lambda: any(isinstance(event, Opened) for event in module.events))
    return driven, module


def over(driven: Driven) -> None:
    driven.client.close()
    driven.server.close()
    with gevent.Timeout(10, AssertionError("the flow does not end")):
        driven.running.get()
    until(lambda: not len(driven.flows))


@pytest.mark.parametrize("last", [b"", b"BYPASS", b"REVOKE"])
def test_a_call_outlives_its_flow(relay: Relay, last: bytes) -> None:
    driven, module = in_a_call(relay)
    if last:
        driven.client.sendall(last)
        assert driven.server.recv(10) == last
        until(lambda: len(driven.afterlife))
        assert driven.backend.open_now == {"p1"}
        driven.client.sendall(b"unread")
        assert driven.server.recv(10) == b"unread"
    over(driven)
    assert driven.backend.open_now == {"p1"}
    seen = len(module.events)
    until(lambda: any(isinstance(event, Activity) for event in module.events[seen:]))
    module.ends_at = time.monotonic() + 0.05
    until(lambda: not driven.backend.open_now)
    until(lambda: not len(driven.afterlife))
    assert b"unread" not in [event.data for event in module.events if isinstance(event, Received)]


def test_without_a_call_all_ends_with_the_flow(relay: Relay) -> None:
    loop = gevent.get_hub().loop
    watching = loop.activecnt
    driven, module = in_a_call(relay)
    module.talks = False
    over(driven)
    until(lambda: loop.activecnt <= watching + 1)  # the deadline of `until` itself
    assert not driven.backend.open_now
    assert not len(driven.afterlife)


def test_a_module_that_fails_does_not_live_on(relay: Relay) -> None:
    driven, _ = in_a_call(relay)
    driven.client.sendall(b"FAIL")
    assert driven.server.recv(10) == b"FAIL"
    until(lambda: not driven.backend.open_now)
    over(driven)
    assert not len(driven.afterlife)


def test_who_is_kicked_does_not_live_on(relay: Relay) -> None:
    driven, _ = in_a_call(relay)
    driven.inspection.abort()
    with gevent.Timeout(10):
        driven.running.get()
    assert not driven.backend.open_now
    assert not len(driven.afterlife)


def _raise_later() -> Iterator[Command]:
    yield ClosePinhole(7)
    raise ValueError("on purpose")


def _hang() -> Iterator[Command]:
    while True:
        yield from ()


@pytest.mark.parametrize("answer", [_raise_later, _hang, lambda: None, lambda: 5])
def test_one_that_answers_nonsense_ends_alone(relay: Relay, answer: Callable[[], Any]) -> None:
    """Whatever `handle` returns without its flow: also a generator, which runs when it is asked for its commands."""
    driven, module = in_a_call(relay)
    over(driven)
    until(lambda: len(driven.afterlife))
    with capture_logs() as lines:
        module.handle = lambda event: answer()  # type: ignore[method-assign]
        until(lambda: any(line["event"] == "alg.broken" for line in lines))
        until(lambda: not len(driven.afterlife))
    assert not driven.backend.open_now
    assert {line["event"] for line in lines} <= {"alg.broken", "alg.slow"}


@pytest.mark.parametrize("deadline", [lambda: "soon", lambda: 1 / 0])
def test_one_whose_deadline_is_none_ends_alone(relay: Relay, deadline: Callable[[], Any]) -> None:
    driven, module = in_a_call(relay)
    over(driven)
    until(lambda: len(driven.afterlife))
    with capture_logs() as lines:
        module.deadline = deadline  # type: ignore[method-assign]
        until(lambda: not len(driven.afterlife))
    assert not driven.backend.open_now
    assert [line["event"] for line in lines] == ["alg.broken"]

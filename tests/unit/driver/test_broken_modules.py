"""A module that raises, hangs or is slow loses its own flow's inspection: no bytes, and nobody else's time."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from structlog.testing import capture_logs

from alg.address import Endpoint
from alg.api import Bypass, Command, Deliver, Event, OpenPinhole, Received, Side
from gateway.driver import guard as guarding
from gateway.driver.guard import Broken, ModuleGuard
from gateway.net.relay.splice import Relay
from tests.unit.driver.driven import Driven, Plain
from tests.unit.relay.ends import read_exactly


def spin() -> None:
    while True:
        pass


def spin_and_swallow() -> None:
    while True:
        try:
            spin()
        except Exception:
            pass


def match_for_ever() -> None:
    re.match(r"(a|a)*b", "a" * 60)


def sleep_for_ever() -> None:
    get_original("time", "sleep")(3600)


def wait_for_ever() -> None:
    gevent.sleep(3600)


HANGS: list[Callable[[], None]] = [spin, spin_and_swallow, match_for_ever, sleep_for_ever, wait_for_ever]


class Twisted(Plain):
    """Opens a pinhole at "PORT", and fails in its own way at "NOW"; delivers everything else."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__()
        self._fail = fail
        self.calls = 0

    def handle(self, event: Event) -> Sequence[Command]:
        self.calls += 1
        match event:
            case Received(_, b"PORT"):
                target = Endpoint("192.0.2.1", 5000)
                opening = OpenPinhole(1, target, "198.51.100.1", "tcp", 60, "test.test")
                return [opening, Deliver(Side.SERVER, b"PORT")]
            case Received(_, b"HELD"):
                return ()
            case Received(_, b"NOW"):
                self._fail()
        return super().handle(event)


def fail() -> None:
    raise RuntimeError("a mistake\nof two lines")


@pytest.mark.parametrize("how", [fail, *HANGS], ids=lambda how: how.__name__)
def test_the_flow_goes_on_without_it(relay: Relay, how: Callable[[], None]) -> None:
    module = Twisted(how)
    driven = Driven(relay, module)
    with capture_logs() as lines:
        driven.client.sendall(b"PORT")
        assert read_exactly(driven.server, 4) == b"PORT"
        with gevent.Timeout(5):
            while not driven.backend.open_now:
                gevent.sleep(0.01)
        driven.client.sendall(b"HELD")
        gevent.sleep(0.05)
        began = time.monotonic()
        driven.client.sendall(b"NOW")
        assert read_exactly(driven.server, 7) == b"HELDNOW"
        assert time.monotonic() - began < 6
        assert driven.handed_over.get(timeout=5)
    assert not driven.backend.open_now
    broken = [line for line in lines if line["event"] == "alg.broken"]
    assert [line["module"] for line in broken] == ["test"]
    assert "\n" not in broken[0]["reason"]
    assert [line["rule"] for line in lines if line["event"] == "alg.revoke"] == ["broken"]
    calls = module.calls
    driven.server.sendall(b"and back")
    assert read_exactly(driven.client, 8) == b"and back"
    assert module.calls == calls
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()


def test_a_flow_beside_one_that_hangs_is_served(relay: Relay) -> None:
    guard = ModuleGuard()
    hanging, healthy = Driven(relay, Twisted(spin), guard=guard), Driven(relay, Plain(), guard=guard)
    hanging.client.sendall(b"NOW")
    began = time.monotonic()
    for number in range(20):
        healthy.client.sendall(b"%04d" % number)
        assert read_exactly(healthy.server, 4) == b"%04d" % number
    assert time.monotonic() - began < 4
    assert read_exactly(hanging.server, 3) == b"NOW"
    for driven in (hanging, healthy):
        assert driven.handed_over.ready() is (driven is hanging)
        assert driven.flow.carrier is not None
        driven.flow.carrier.abort()
        driven.finish()


class Moment(Plain):
    """Asks for a tick at once, always: and does nothing with it."""

    ticks = 0

    def handle(self, event: Event) -> Sequence[Command]:
        self.ticks += 1
        return super().handle(event)

    def deadline(self) -> float | None:
        return 0.0


def test_a_module_that_always_wants_a_tick_gets_few(relay: Relay) -> None:
    module = Moment()
    driven = Driven(relay, module)
    gevent.sleep(0.5)
    assert 10 <= module.ticks <= 60
    driven.client.sendall(b"x")
    assert read_exactly(driven.server, 1) == b"x"
    driven.inspection.abort()
    driven.finish()


@pytest.mark.parametrize("deadline", [lambda: 1 / 0, lambda: "soon", lambda: float("nan"), lambda: -1e308])
def test_a_deadline_that_is_none(relay: Relay, deadline: Callable[[], Any]) -> None:
    module = Plain()
    module.deadline = deadline  # type: ignore[method-assign]
    driven = Driven(relay, module)
    driven.client.sendall(b"x" * 5000)
    assert read_exactly(driven.server, 5000) == b"x" * 5000
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()


# --- the guard by itself --------------------------------------------------------------------------------------------


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_three_slow_calls_in_a_minute_take_a_module_out() -> None:
    guard = ModuleGuard()
    with capture_logs() as lines:
        for _ in range(2):
            guard.call("slow", "w0-1", busy, guarding.SLOW * 1.5)
            guard.call("other", "w0-2", busy, 0.001)
        assert not guard.is_out("slow")
        guard.call("slow", "w0-1", busy, guarding.SLOW * 1.5)
    assert guard.is_out("slow")
    assert not guard.is_out("other")
    assert [line["event"] for line in lines] == ["alg.slow"] * 3 + ["alg.out"]
    assert {line["module"] for line in lines} == {"slow"}


def test_a_machine_that_is_busy_is_not_the_fault_of_a_module() -> None:
    guard = ModuleGuard()
    with capture_logs() as lines:
        for _ in range(4):
            guard.call("waits", "w0-1", get_original("time", "sleep"), guarding.SLOW * 1.5)
    assert not lines
    assert not guard.is_out("waits")


def test_slow_calls_that_are_long_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, now = ModuleGuard(), [1000.0]
    monkeypatch.setattr(guarding, "monotonic", lambda: now[0])
    for _ in range(6):
        guard.call("slow", "w0-1", busy, guarding.SLOW * 1.2)
        now[0] += guarding.WITHIN / 2 + 1
    assert not guard.is_out("slow")


def test_a_module_that_is_out_reads_nothing_any_more(relay: Relay) -> None:
    guard = ModuleGuard()
    module = Plain()
    driven = Driven(relay, module, guard=guard)
    driven.client.sendall(b"a")
    assert read_exactly(driven.server, 1) == b"a"
    for _ in range(3):
        guard.call("test", "another", busy, guarding.SLOW * 1.2)
    driven.client.sendall(b"b")
    assert read_exactly(driven.server, 1) == b"b"
    assert driven.handed_over.get(timeout=5)
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()


def test_the_timer_stops_when_nothing_is_called() -> None:
    guard = ModuleGuard()
    guard.call("test", "w0-1", lambda: None)
    assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
    until = time.monotonic() + 5
    while signal.getitimer(signal.ITIMER_REAL)[1] and time.monotonic() < until:
        gevent.sleep(0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(Broken, match="hangs"):
        guard.call("test", "w0-1", spin)


class Greedy(Plain):
    """Costs much, in pieces that are short enough each."""

    share = 0.01

    def handle(self, event: Event) -> Sequence[Command]:
        busy(0.01)
        return super().handle(event)


def test_a_flow_that_costs_more_than_its_share_is_relayed_unread(relay: Relay) -> None:
    driven = Driven(relay, Greedy())
    data = bytes(1_000_000)
    with capture_logs() as lines:
        speaker = gevent.spawn(driven.client.sendall, data)
        assert read_exactly(driven.server, len(data)) == data
        speaker.get()
    assert [line["reason"] for line in lines if line["event"] == "alg.unread"] == ["effort"]
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()


def test_standing_down_is_no_fault(relay: Relay) -> None:
    class Leaves(Plain):
        def handle(self, event: Event) -> Sequence[Command]:
            return [Bypass()]

    driven = Driven(relay, Leaves())
    with capture_logs() as lines:
        driven.client.sendall(b"x")
        assert read_exactly(driven.server, 1) == b"x"
    assert [line["event"] for line in lines] == ["alg.bypass"]
    assert driven.handed_over.get(timeout=5)
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()

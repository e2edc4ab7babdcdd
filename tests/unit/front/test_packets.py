"""The driver of packets, as a dialogue with an engine that does what the test says."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import gevent
import pytest
from structlog.testing import capture_logs

from alg.address import Endpoint
from alg.api import Activity, Edit, Mode, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.datagrams import Datagram, DatagramCommand, DatagramEvent, Release
from alg.sip.ladder import SipRung
from gateway.broker.marks import PASSING
from gateway.driver.datagrams import Setting
from gateway.driver.faults import UNREAD_FOR
from gateway.driver.outbox import LONGEST_HOLD
from gateway.front.packets.packet import parse
from gateway.front.packets.queue import MOST_HELD, PacketFront, QueueModule
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.observe.trace import Trace
from tests.unit.front.test_udp_packet import A4, B4, packet4

EDIT = (Edit(0, 1, b"LONGER", "test"),)


class Packet:
    """A packet of the queue that remembers what became of it."""

    mark = indev = outdev = 0

    def __init__(self, data: bytes, order: list[Packet]) -> None:
        self.data, self.order = data, order

    def get_payload(self) -> bytes:
        return self.data

    def set_payload(self, payload: bytes) -> None:
        self.data = payload

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def accept(self) -> None:
        raise AssertionError("it would pass by the rules of others")

    def repeat(self) -> None:
        assert self.mark == PASSING
        self.order.append(self)

    @property
    def payload(self) -> bytes:
        return parse(self.data).payload


class Pinholes:
    """A backend that opens what it is asked for, unless it is told a rule."""

    def __init__(self) -> None:
        self.rule: str | None = None
        self.said: list[object] = []

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        gevent.get_hub().loop.run_callback(self._answer, request, done)

    def _answer(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        self.said.append(request)
        if self.rule:
            done(PinholeRefused(self.rule))
        elif isinstance(request, PinholeRequest):
            done(self._opened(request))
        else:
            done(self._updated(request))

    def _opened(self, request: PinholeRequest) -> Lease:
        return Lease(
            id="1" * 16,
            flow=request.flow,
            reason=request.reason,
            client=request.client,
            direction="in",
            protocol="udp",
            public=Endpoint(request.public_host or "", 40000),
            target=request.target,
            peer=None,
            kind="conversation",
            expires=0.0,
            backend="kernel",
        )

    def _updated(self, update: PinholeUpdate) -> Lease:
        return Lease(
            id=update.lease, flow="", reason="", client="", direction="in", protocol="udp", public=B4, target=A4,
            peer=None, expires=0.0, backend="kernel", kind="conversation",
        )  # fmt: skip

    def close(self, lease: Lease) -> None:
        self.said.append(("close", lease.id))

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return dict.fromkeys(leases, (3, 4))


class Engine:
    """Answers each event by `answers(event)`."""

    def __init__(self) -> None:
        self.events: list[DatagramEvent] = []
        self.answers: Callable[[DatagramEvent], Sequence[DatagramCommand]] = lambda event: []
        self.wants: float | None = None

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        self.events.append(event)
        return self.answers(event)

    def deadline(self) -> float | None:
        return self.wants


class Rig:
    def __init__(self, mode: Mode = Mode.REWRITE) -> None:
        self.now = 100.0
        self.engine, self.pinholes, self.order = Engine(), Pinholes(), list[Packet]()
        setting = Setting("test", mode, "p-1", MOST_HELD, {}, 2.0, True)
        self.trace = Trace()
        self.front = PacketFront(
            [QueueModule(self.engine, setting, frozenset({5060}), False)],
            self.pinholes,
            [ipaddress.ip_network("192.168.56.0/24")],
            lambda server: PublicAddress("203.0.113.2", "198.51.100.1"),
            self.trace,
            lambda: self.now,
        )

    def take(self, data: bytes) -> Packet:
        packet = Packet(data, self.order)
        self.front.take(packet)
        return packet

    def settle(self) -> None:
        for _ in range(5):
            gevent.sleep(0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def opens(event: DatagramEvent) -> Sequence[DatagramCommand]:
    """Holds each datagram until its conversation is open; then edits it."""
    match event:
        case Datagram(number, _, client):
            return [OpenConversation(number, client, None, (), 60.0, "test.signalling")]
        case Opened(ref):
            return [Release(ref, EDIT)]
        case Refused(ref):
            return [Release(ref)]
        case _:
            return []


def test_a_packet_waits_for_its_conversation_and_then_goes_edited(rig: Rig) -> None:
    rig.engine.answers = opens
    packet = rig.take(packet4(b"hello"))
    assert rig.order == []
    assert rig.front.status()["waiting"] == 1
    rig.settle()
    assert rig.order == [packet]
    assert packet.payload == b"LONGERello"
    (request,) = rig.pinholes.said
    assert isinstance(request, PinholeRequest)
    assert (request.kind, request.public_host) == ("read", "203.0.113.2")
    assert rig.engine.events[1] == Opened(1, Endpoint("198.51.100.1", 40000), 100.0)


def test_the_engine_is_told_what_was_counted_as_often_as_it_wants(rig: Rig) -> None:
    media = OpenConversation(1, Endpoint(A4.host, 4000), 4001, (), 60.0, "test.media")
    read = OpenConversation(2, A4, None, (), 60.0, "test.signalling")  # whose packets the engine sees itself
    rig.engine.answers = lambda event: [media, read] if isinstance(event, Datagram) else []
    rig.take(packet4(b"hello"))
    rig.settle()
    for now in (101.9, 102.0, 103.9, 104.1):
        rig.now = now
        rig.front.tick()
        rig.settle()
    assert rig.engine.events[3:] == [Activity(1, 3, 4, 102.0), Activity(1, 3, 4, 104.1)]


def test_where_a_message_belongs_is_remembered_with_it(rig: Rig) -> None:
    rig.engine.answers = lambda event: [Release(1, EDIT, SipRung(b"call", first=True))]
    rig.take(packet4(b"hello"))
    (row,) = rig.trace.ladders.rows("call")
    assert (row["source"], row["title"], row["edits"][0]["after"]) == (str(A4), "hello", "LONGER")


def test_a_refusal_is_told(rig: Rig) -> None:
    rig.engine.answers, rig.pinholes.rule = opens, "quota"
    packet = rig.take(packet4(b"hello"))
    rig.settle()
    assert rig.engine.events[1] == Refused(1, "quota", 100.0)
    assert packet.payload == b"hello"


def test_observing_opens_and_changes_nothing_but_says_what_it_would() -> None:
    rig = Rig(Mode.OBSERVE)
    rig.engine.answers = opens
    packet = rig.take(packet4(b"hello"))
    rig.settle()
    assert packet.payload == b"hello"
    assert rig.pinholes.said == []
    assert rig.engine.events[1] == Opened(1, Endpoint("198.51.100.1", 0), 100.0)
    (row,) = rig.trace.rows()
    assert row["after"] == "LONGERello"


def test_packets_of_a_flow_leave_in_their_order_and_others_at_once(rig: Rig) -> None:
    rig.engine.answers = lambda event: (
        [] if isinstance(event, Datagram) and event.packet == 1 else [Release(2), Release(3)]
    )
    first, second = rig.take(packet4(b"one")), rig.take(packet4(b"two"))
    data = packet4(b"elsewhere")
    other = rig.take(data[:16] + bytes([203, 0, 113, 66]) + data[20:])
    assert rig.order == [other]
    rig.engine.answers = lambda event: [Release(1)]
    rig.engine.wants = 100.0
    rig.front.tick()
    assert rig.order == [other, first, second]


def test_nothing_waits_for_ever(rig: Rig) -> None:
    packet = rig.take(packet4(b"one"))
    rig.now += LONGEST_HOLD
    rig.front.tick()
    assert rig.order == [packet]
    assert rig.front.counters()["overdue"] == 1
    rig.engine.answers = lambda event: [Release(1, EDIT)] if isinstance(event, Tick) else []
    rig.engine.wants = rig.now
    rig.front.tick()  # too late: it is gone
    assert rig.order == [packet]


def test_a_crowd_passes_untouched(rig: Rig) -> None:
    """Those of the way that is crowded, in their order; another way's still wait."""
    data = packet4(b"elsewhere")
    other = rig.take(data[:16] + bytes([203, 0, 113, 66]) + data[20:])
    crowd = [rig.take(packet4(b"one")) for _ in range(MOST_HELD)]
    assert rig.order == crowd[:-1]
    assert rig.front.status()["waiting"] == 2
    rig.front.stop()
    assert rig.order == [*crowd[:-1], other, crowd[-1]]


def admits(event: DatagramEvent) -> Sequence[DatagramCommand]:
    """Every datagram of the server lets somebody in, or says again who is in."""
    match event:
        case Datagram(number, Side.CLIENT, client):
            return [OpenConversation(1, client, None, (), 60.0, "test.media"), Release(number)]
        case Datagram(number, Side.SERVER):
            return [UpdateConversation(1, ("203.0.113.10",), None), Release(number, EDIT)]
        case _:
            return []


def reversed4(payload: bytes) -> bytes:
    data = packet4(payload)
    return data[:12] + data[16:20] + data[12:16] + data[22:24].join((data[20:20], data[20:22])) + data[24:]


def test_a_message_that_names_a_peer_goes_when_that_peer_is_let_in(rig: Rig) -> None:
    rig.engine.answers = admits
    first = rig.take(packet4(b"offer"))
    rig.settle()
    answer = rig.take(reversed4(b"answer"))
    assert rig.order == [first]
    behind = rig.take(reversed4(b"answer again"))  # lets nobody in, and does not overtake
    rig.settle()
    assert rig.order == [first, answer, behind]
    assert answer.payload == b"LONGERnswer"
    assert isinstance(rig.pinholes.said[1], PinholeUpdate)
    assert rig.take(reversed4(b"and again")) in rig.order, "nobody is let in who was not"


@pytest.mark.parametrize("rule", ["broker", "lease"])
def test_a_message_that_names_a_peer_goes_too_if_that_peer_is_not_let_in(rig: Rig, rule: str) -> None:
    rig.engine.answers = admits
    rig.take(packet4(b"offer"))
    rig.settle()
    rig.pinholes.rule = rule
    answer = rig.take(reversed4(b"answer"))
    rig.settle()
    assert rig.order[-1] is answer
    assert (Refused(1, rule, 100.0) in rig.engine.events) is (rule == "lease")  # else what was open stays


def test_a_message_that_names_a_peer_does_not_wait_for_ever(rig: Rig) -> None:
    rig.engine.answers = admits
    rig.take(packet4(b"offer"))
    rig.settle()
    rig.pinholes.ask = lambda request, done: None  # type: ignore[method-assign]
    answer = rig.take(reversed4(b"answer"))
    rig.now += LONGEST_HOLD
    rig.front.tick()
    assert rig.order[-1] is answer
    assert answer.payload == b"LONGERnswer", "what the module has said of it holds"


def test_a_module_that_raises_harms_nobody_else(rig: Rig) -> None:
    def answers(event: DatagramEvent) -> Sequence[DatagramCommand]:
        if isinstance(event, Datagram) and event.data == b"poison":
            raise RuntimeError("a mistake")
        return [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []

    rig.engine.answers = answers
    poison = rig.take(packet4(b"poison"))
    assert (rig.order, poison.payload) == ([poison], b"poison")
    assert rig.take(packet4(b"harmless")).payload == b"harmless", "these two go on without the module"
    data = packet4(b"harmless")
    assert rig.take(data[:16] + bytes([203, 0, 113, 66]) + data[20:]).payload == b"LONGERarmless"
    rig.now += UNREAD_FOR
    assert rig.take(packet4(b"harmless")).payload == b"LONGERarmless"


def spin() -> NoReturn:
    while True:
        pass


def test_a_module_that_hangs_harms_nobody_else(rig: Rig) -> None:
    """It is ended in the midst of its call; only what was said by these two goes on without it."""

    def answers(event: DatagramEvent) -> Sequence[DatagramCommand]:
        if isinstance(event, Datagram) and event.data == b"poison":
            spin()
        return [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []

    rig.engine.answers = answers
    poison = rig.take(packet4(b"poison"))
    assert (rig.order, poison.payload) == ([poison], b"poison")
    assert rig.take(packet4(b"harmless")).payload == b"harmless"
    data = packet4(b"harmless")
    assert rig.take(data[:16] + bytes([203, 0, 113, 66]) + data[20:]).payload == b"LONGERarmless"


def test_a_module_whose_clock_hangs_is_not_asked_for_it_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.engine, "deadline", spin)
    rig.engine.answers = lambda event: [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []
    assert rig.take(packet4(b"hello")).payload == b"LONGERello"


class Odd(BaseException):
    """No Exception, as SystemExit is none."""


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Odd])
def test_what_is_no_exception_harms_nobody_else_either(rig: Rig, error: type[BaseException]) -> None:
    def raises(*_: object) -> NoReturn:
        raise error

    rig.engine.answers = raises
    assert rig.take(packet4(b"hello")).payload == b"hello"
    rig.engine.deadline = raises  # type: ignore[method-assign]
    rig.now += UNREAD_FOR
    assert rig.take(packet4(b"hello")).payload == b"hello"


@pytest.mark.parametrize("where", ["handle", "deadline"])
def test_a_module_that_hangs_three_times_is_out(rig: Rig, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time everybody waits a moment for it, so it is not called a fourth time."""
    calls = []

    def hang(*_: object) -> NoReturn:
        calls.append(where)
        spin()

    rig.engine.answers = lambda event: [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []
    monkeypatch.setattr(rig.engine, where, hang)
    data = packet4(b"hello")
    with capture_logs() as lines:
        for number in range(40):  # others every time
            rig.take(data[:16] + bytes([203, 0, 113, 66 + number]) + data[20:])
            rig.now += 2
    assert len(calls) == 3
    assert [line["module"] for line in lines if line["event"] == "alg.broken"] == ["test"]
    assert [line["module"] for line in lines if line["event"] == "alg.out"] == ["test"]
    assert rig.order[-1].payload == b"hello"
    assert len(rig.order) == 40


def test_slow_calls_are_counted(rig: Rig) -> None:
    def slow(event: DatagramEvent) -> Sequence[DatagramCommand]:
        until = time.thread_time() + 0.06
        while time.thread_time() < until:
            pass
        return [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []

    rig.engine.answers = slow
    with capture_logs() as lines:
        payloads = [rig.take(packet4(b"hello")).payload for _ in range(4)]
    assert payloads == [*3 * [b"LONGERello"], b"hello"]
    assert [line["event"] for line in lines] == [*3 * ["alg.slow"], "alg.out"]


def test_a_module_opens_only_what_it_declares(rig: Rig) -> None:
    setting = Setting("test", Mode.REWRITE, "p-1", MOST_HELD, {}, None, True, None, frozenset({"mapping"}))
    module = QueueModule(rig.engine, setting, frozenset({5060}), False)
    rig.front = PacketFront(
        [module],
        rig.pinholes,
        [ipaddress.ip_network("192.168.56.0/24")],
        lambda server: PublicAddress("203.0.113.2", "198.51.100.1"),
        rig.trace,
        lambda: rig.now,
    )
    rig.engine.answers = lambda event: (
        [OpenConversation(1, A4, None, (), 60.0, "test.x")] if isinstance(event, Datagram) else []
    )
    rig.take(packet4(b"hello"))
    rig.settle()
    assert [event for event in rig.engine.events if isinstance(event, Refused)] == [Refused(1, "kind", rig.now)]
    assert rig.pinholes.said == []


def generated(event: DatagramEvent, fails: bool) -> Iterator[DatagramCommand]:
    if fails:
        raise RuntimeError("in its midst")
    if isinstance(event, Datagram):
        yield Release(event.packet, EDIT)


@pytest.mark.parametrize(
    ("answer", "payload"),
    [
        (lambda event: None, b"hello"),
        (lambda event: 7, b"hello"),
        (lambda event: [OpenConversation(1, None, None, (), 60.0, "test.x")], b"hello"),  # type: ignore[arg-type]
        (lambda event: generated(event, True), b"hello"),
        (lambda event: generated(event, False), b"LONGERello"),
    ],
)
def test_answers_of_a_wrong_kind(rig: Rig, answer: Any, payload: bytes) -> None:
    """A generator runs while it is watched; nonsense is a mistake as any other, and the datagram goes as it came."""
    rig.engine.answers = answer
    packet = rig.take(packet4(b"hello"))
    rig.now += LONGEST_HOLD + 0.1
    rig.front.tick()
    assert (rig.order, packet.payload) == ([packet], payload)


def test_edits_that_do_not_fit_are_a_mistake_too(rig: Rig) -> None:
    rig.engine.answers = lambda event: (
        [Release(event.packet, (Edit(5, 99, b"", "test"),))] if isinstance(event, Datagram) else []
    )
    assert rig.take(packet4(b"short")).payload == b"short"


def test_what_is_not_whole_or_not_between_inside_and_outside_is_never_shown(rig: Rig) -> None:
    rig.take(packet4(b"x" * 30000)[:16384])
    rig.take(packet4(b"x", flags=0x2000))
    rig.take(packet4(b""))
    data = packet4(b"x")
    rig.take(data[:16] + bytes([192, 168, 56, 11]) + data[20:])
    assert rig.engine.events == []
    assert len(rig.order) == 4
    counted = {name: count for name, count in rig.front.counters().items() if name != "packets"}
    assert counted == {"untouched_long": 1, "untouched_fragment": 1, "untouched_other": 2}


def test_who_is_the_client(rig: Rig) -> None:
    data = packet4(b"x")
    rig.take(data)
    rig.take(data[:12] + data[16:20] + data[12:16] + data[20:])
    sides = [
        (event.side, event.client.host, event.server.host) for event in rig.engine.events if isinstance(event, Datagram)
    ]
    assert sides == [(Side.CLIENT, A4.host, B4.host), (Side.SERVER, A4.host, B4.host)]


def test_a_conversation_leads_to_nobody_else(rig: Rig) -> None:
    """And an update of what is lost is told as such, and counts are passed on."""
    other = Endpoint("192.168.56.99", 4000)
    rig.engine.answers = lambda event: (
        [Release(1), OpenConversation(7, other, None, (), 60.0, "test")] if isinstance(event, Datagram) else []
    )
    rig.take(packet4(b"x"))
    rig.settle()
    assert rig.engine.events[1:] == [Refused(7, "public", 100.0)]  # nobody has seen that host
    assert rig.pinholes.said == []
    rig.engine.answers = lambda event: [UpdateConversation(9, (), 60.0)] if isinstance(event, Tick) else []
    rig.engine.wants = rig.now
    rig.front.tick()
    rig.settle()
    assert rig.engine.events[-1] == Refused(9, "lease", 100.0)

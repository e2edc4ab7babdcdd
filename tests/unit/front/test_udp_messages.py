"""The driver of what is read of an association, as a dialogue with an engine that does what the test says."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import gevent
import pytest

from alg.address import Endpoint
from alg.api import ClosePinhole, Edit, Mode, OpenConversation, Opened, Refused, Side
from alg.datagrams import Datagram, DatagramCommand, DatagramEvent, Release
from gateway.driver.guard import ModuleGuard
from gateway.flow.table import Flow
from gateway.front.udp.reader import LONGEST, MOST_WAITING, ClientMessages, MessageReader
from gateway.front.udp.sockets import Host, Outside
from gateway.model.requests import Lease
from gateway.net.addresses import PublicAddress
from tests.unit.front import test_packets as packets

CLIENT = Endpoint("192.168.56.10", 5062)
SERVER, OTHER = ("203.0.113.10", 5060), ("203.0.113.66", 5060)
EDIT = (Edit(0, 1, b"LONGER", "test"),)
KINDS = frozenset({"conversation"})
OPEN = OpenConversation(1, Endpoint(CLIENT.host, 4000), 4001, (), 60.0, "sip.rtp")


class Engine(packets.Engine):
    """Releases everything at once, unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed: tuple[Endpoint, Endpoint] | None = None
        self.answers = lambda event: [Release(event.packet)] if isinstance(event, Datagram) else []

    def make(self, client: Endpoint, public: Endpoint) -> tuple[Engine, float]:
        self.fixed = client, public
        return self, 30.0


class Rig:
    def __init__(self, mode: Mode = Mode.REWRITE) -> None:
        self.engine = Engine()
        self.pinholes = packets.Pinholes()
        self.sent: list[tuple[Side, Host, bytes]] = []
        self.moved = 0
        lease = Lease(
            id="1" * 16,
            flow="flow-1",
            reason="socks.udp",
            client=CLIENT.host,
            direction="in",
            protocol="udp",
            public=Endpoint("10.0.0.2", 41000),
            target=CLIENT,
            peer=None,
            kind="local",
            expires=0.0,
            backend="userspace",
        )
        self.outside = Outside(lease, socket.socket(type=socket.SOCK_DGRAM), PublicAddress("10.0.0.2", "203.0.113.1"))
        reader = MessageReader(
            "test", mode, self.pinholes, self.engine.make, True, lambda target, user: True, ModuleGuard(), KINDS
        )
        flow = Flow("flow-1", "socks", CLIENT, Endpoint(*SERVER), None)
        self.messages = ClientMessages(reader, flow, CLIENT, self.outside, 300.0, self._send, self._alive)

    def _send(self, side: Side, target: Host, data: bytes) -> None:
        self.sent.append((side, target, data))

    def _alive(self) -> None:
        self.moved += 1

    def datas(self) -> list[bytes]:
        return [data for _, _, data in self.sent]

    def close(self) -> None:
        self.messages.close()
        self.outside.watcher.close()
        self.outside.sock.close()
        gevent.sleep(0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def hold(event: DatagramEvent) -> Sequence[DatagramCommand]:
    """The first datagram waits for a conversation; all others go on at once."""
    match event:
        case Datagram(packet=1):
            return [OPEN]
        case Datagram(packet=number):
            return [Release(number)]
        case Opened() | Refused():
            return [Release(1, EDIT)]
    return []


def test_what_is_advertised_is_what_the_world_sees(rig: Rig) -> None:
    """Where `network.outside` is not an address of this host, the port is the socket's and the address is the named."""
    assert rig.engine.fixed == (CLIENT, Endpoint("203.0.113.1", 41000))


def test_both_ways_with_the_clients_own_address(rig: Rig) -> None:
    rig.messages.take(Side.CLIENT, SERVER, b"question")
    rig.messages.take(Side.SERVER, SERVER, b"answer")
    assert rig.sent == [(Side.CLIENT, SERVER, b"question"), (Side.SERVER, SERVER, b"answer")]
    assert [event.client for event in rig.engine.events if isinstance(event, Datagram)] == [CLIENT, CLIENT]


def test_order_within_a_pair_and_no_waiting_elsewhere(rig: Rig) -> None:
    rig.engine.answers = hold
    rig.messages.take(Side.CLIENT, SERVER, b"first")
    rig.messages.take(Side.CLIENT, SERVER, b"second")
    rig.messages.take(Side.SERVER, SERVER, b"from there")
    rig.messages.take(Side.CLIENT, OTHER, b"elsewhere")
    assert rig.datas() == [b"from there", b"elsewhere"]
    gevent.sleep(0.01)
    assert rig.datas() == [b"from there", b"elsewhere", b"LONGERirst", b"second"]


def test_too_much_behind_one_that_waits(rig: Rig) -> None:
    """Nothing is lost and nothing changes places: all go as they are, and what was decided too late changes nothing."""
    rig.engine.answers = hold
    data = [b"%d" % number for number in range(MOST_WAITING + 1)]
    for datagram in data:
        rig.messages.take(Side.CLIENT, SERVER, datagram)
    assert rig.datas() == data
    gevent.sleep(0.01)
    assert rig.datas() == data


def test_one_that_grew_too_long_goes_as_it_was(rig: Rig) -> None:
    rig.engine.answers = lambda event: [Release(event.packet, EDIT)] if isinstance(event, Datagram) else []
    for size in (LONGEST - 5, LONGEST - 4):
        rig.messages.take(Side.CLIENT, SERVER, b"x" * size)
    assert rig.datas() == [b"LONGER" + b"x" * (LONGEST - 6), b"x" * (LONGEST - 4)]


def test_observing_changes_nothing() -> None:
    rig = Rig(Mode.OBSERVE)
    rig.engine.answers = hold
    rig.messages.take(Side.CLIENT, SERVER, b"first")
    gevent.sleep(0.01)
    assert rig.datas() == [b"first"]
    assert rig.pinholes.said == []
    rig.close()


def test_what_opens_after_the_end_is_closed(rig: Rig) -> None:
    rig.engine.answers = hold
    rig.messages.take(Side.CLIENT, SERVER, b"first")
    rig.messages.close()
    gevent.sleep(0.01)
    assert rig.sent == []
    assert len(rig.messages.conversations) == 0
    assert rig.pinholes.said[-1] == ("close", "1" * 16)


def test_an_engine_opens_nothing_for_another_host(rig: Rig) -> None:
    """An engine's mistake must not become a hole."""
    other = OpenConversation(1, Endpoint("192.168.56.11", 4000), None, (), 60.0, "sip.rtp")
    rig.engine.answers = lambda event: [other] if isinstance(event, Datagram) else []
    rig.messages.take(Side.CLIENT, SERVER, b"first")
    gevent.sleep(0.01)
    assert rig.pinholes.said == []
    assert [event.rule for event in rig.engine.events if isinstance(event, Refused)] == ["target"]


def test_closing_a_conversation_that_was_never_opened(rig: Rig) -> None:
    rig.engine.answers = lambda event: [ClosePinhole(9), Release(1)] if isinstance(event, Datagram) else []
    rig.messages.take(Side.CLIENT, SERVER, b"first")
    assert rig.datas() == [b"first"]

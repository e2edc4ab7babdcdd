"""SYNs that wait until their server has been asked whether it listens (the way: tests/net/test_sip_refused.py)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

import gevent
import gevent.socket as gsocket
import pytest

from gateway.broker.marks import PASSING
from gateway.front.packets.handshakes import MOST_OF_CLIENT, REFUSES, SERVES, Handshakes

INSIDE = [ipaddress.ip_network("192.168.56.0/24")]
CLIENT = "192.168.56.10"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Syn:
    """A packet of the queue."""

    indev = outdev = 0

    def __init__(self, port: int, server: str = "127.0.0.1", client: str = CLIENT, mark: int = 2) -> None:
        ends = socket.inet_aton(client) + socket.inet_aton(server)
        self._data = (
            struct.pack(">BBHHHBBH8s", 0x45, 0, 40, 0, 0, 64, 6, 0, ends) + struct.pack(">HH", 40000, port) + bytes(16)
        )
        self.mark = mark
        self.accepted = False

    def get_payload(self) -> bytes:
        return self._data

    def set_payload(self, payload: bytes) -> None:
        raise AssertionError("a handshake is not changed")

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def accept(self) -> None:
        assert not self.accepted
        self.accepted = True

    def repeat(self) -> None:
        raise AssertionError("what is queued again would wait for ever")

    def outcome(self) -> str:
        with gevent.Timeout(5):
            while not self.accepted:
                gevent.sleep(0.001)
        return "refused" if self.mark == 2 | PASSING else "passed" if self.mark == 2 else hex(self.mark)


@pytest.fixture
def free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def listener() -> Iterator[gsocket.socket]:
    with gsocket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener


def sent(handshakes: Handshakes, *syns: Syn) -> list[str]:
    for syn in syns:
        handshakes.take(syn)
    return [syn.outcome() for syn in syns]


def test_who_refuses_is_asked_again_after_a_while(free: int) -> None:
    clock = Clock()
    handshakes = Handshakes(INSIDE, clock)
    assert sent(handshakes, Syn(free), Syn(free)) == ["refused", "refused"]
    with gsocket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", free))
        listener.listen(4)
        assert sent(handshakes, Syn(free)) == ["refused"]
        clock.now += REFUSES
        assert sent(handshakes, Syn(free)) == ["passed"]
        assert handshakes.refused == 3


def test_who_listens_is_not_asked_each_time(listener: gsocket.socket) -> None:
    clock = Clock()
    handshakes = Handshakes(INSIDE, clock)
    port = listener.getsockname()[1]
    for _ in range(3):
        assert sent(handshakes, Syn(port)) == ["passed"]
    clock.now += SERVES
    assert sent(handshakes, Syn(port)) == ["passed"]
    listener.settimeout(1)
    for _ in range(2):
        listener.accept()[0].close()
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_hosts_inside_are_not_asked() -> None:
    syn = Syn(5060, server="192.168.56.20")
    Handshakes(INSIDE).take(syn)
    assert syn.accepted
    assert syn.mark == 2


def test_one_client_has_few_servers_asked_at_a_time(free: int) -> None:
    handshakes = Handshakes(INSIDE)
    syns = [Syn(free, server=f"127.0.1.{n}") for n in range(MOST_OF_CLIENT + 1)]
    other = Syn(free, client="192.168.56.11", server="127.0.2.1")
    for syn in (*syns, other):
        handshakes.take(syn)
    assert [syn.accepted for syn in syns] == [False] * MOST_OF_CLIENT + [True]
    assert [syn.outcome() for syn in syns] == ["refused"] * MOST_OF_CLIENT + ["passed"]
    assert other.outcome() == "refused"
    assert sent(handshakes, Syn(free, server="127.0.3.1")) == ["refused"], "and it may ask again"


def test_what_is_cut_short_passes() -> None:
    for length in range(24):
        syn = Syn(5060)
        syn._data = syn._data[:length]
        Handshakes(INSIDE).take(syn)
        assert syn.accepted
        assert syn.mark == 2


def test_one_host_with_many_addresses_does_not_take_all_places(free: int) -> None:
    handshakes = Handshakes(INSIDE, identify=lambda address: "one" if address != "192.168.56.99" else address)
    syns = [Syn(free, server=f"127.0.{n}.1", client=f"192.168.56.{n}") for n in range(1, 20)]
    other = Syn(free, server="127.0.2.2", client="192.168.56.99")
    for syn in (*syns, other):
        handshakes.take(syn)
    assert [syn.accepted for syn in syns] == [False] * MOST_OF_CLIENT + [True] * (len(syns) - MOST_OF_CLIENT)
    assert other.outcome() == "refused"
    assert [syn.outcome() for syn in syns[:MOST_OF_CLIENT]] == ["refused"] * MOST_OF_CLIENT
    assert not handshakes._asked_for

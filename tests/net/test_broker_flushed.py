"""The table is removed by others while openings are withheld for older connections (decision 0079), and after sockets
have talked past all pinholes: nobody is told of what is not open, and no older connection is in the way."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from alg.address import Endpoint
from alg.api import PINHOLE_KINDS
from gateway.broker import guard, netfilter, netlink
from gateway.broker.engine import Engine
from gateway.broker.limits import BrokerLimits
from gateway.broker.netfilter import Meter
from gateway.broker.ruleset_watch import Changes
from gateway.config.load import parse_config
from gateway.lease.messages import LeaseOpened, Open, RequestRefused, ToWorker
from tests.net.broker_rig import CLIENT, SERVER, Phones, Rig, wait_for
from tests.net.test_broker_restore import is_whole, nft
from tests.net.test_broker_udp import conversation, gets, of

pytestmark = pytest.mark.net

LOST = {
    "the table": "delete table inet algate",
    "all notes": "flush set inet algate talked4",
    "the rules": "flush table inet algate",
}
WITHHELD = 5.0  # seconds for which openings are kept back
CALLS = 100  # openings that are there before: more than one step restores (gateway.broker.restore.STEP)


def talk(rig: Rig, phones: Phones) -> tuple[Any, Any]:
    """A phone that has sent past all pinholes, and its peer, which has heard it from another port."""
    rig.at(rig.router, "iptables -I FORWARD -i in -j ACCEPT")
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    gets(far, phone, of(far))
    return phone, far


def both_ways_at_once(phone: Any, far: Any, public: Endpoint) -> None:
    """The first packets of a peer that knows the public port arrive as the peer's, and are answered to it."""
    far.sendto(b"first", tuple(public))
    data, source = phone.recvfrom(100)
    assert (data, Endpoint(*source)) == (b"first", of(far))
    phone.sendto(b"answer", source)
    far.settimeout(2)
    data, source = far.recvfrom(100)
    assert (data, Endpoint(*source)) == (b"answer", public)


@pytest.mark.parametrize("way", LOST.values(), ids=LOST.keys())
def test_who_has_talked_before_the_notes_were_lost(rig: Rig, phones: Phones, way: str) -> None:
    phone, far = talk(rig, phones)
    nft(rig, way)
    wait_for(lambda: is_whole(rig), "the table")
    time.sleep(0.2)  # the broker has seen that, too
    lease = rig.open(conversation())
    both_ways_at_once(phone, far, lease.public)


class Told:
    """What workers are told, by the time of it."""

    def __init__(self) -> None:
        self.answers: list[ToWorker] = []

    def __call__(self, _slot: int, messages: Sequence[ToWorker]) -> Sequence[ToWorker]:
        self.answers.extend(messages)
        return ()


def limits_of(restore: bool) -> BrokerLimits:
    config = parse_config('[network]\ninside = ["192.168.56.0/24"]\n', "here")
    return BrokerLimits(
        inside=config.inside_networks,
        ports=(40000, 40999),
        read_ports=None,
        per_client=1000,
        rate=1e6,
        restore=restore,
        kinds={0: frozenset(PINHOLE_KINDS)},
    )


def engine_of(rig: Rig, told: Told, restore: bool) -> Engine:
    return Engine(table=rig.table, limits=limits_of(restore), send=told)


@pytest.fixture
def without_broker(rig: Rig) -> Iterator[Rig]:
    """A rig whose broker is an engine of the test's own."""
    rig.end()
    yield rig
    subprocess.run(
        ["ip", "netns", "exec", rig.router, "nft", "delete", "table", "inet", rig.table],
        check=False,
        capture_output=True,
    )


@pytest.mark.parametrize("restore", [True, False], ids=["restored", "not restored"])
@pytest.mark.parametrize("step", ["noticed before", "noticed by the next opening"])
def test_what_is_withheld_while_the_table_goes(without_broker: Rig, phones: Phones, restore: bool, step: str) -> None:
    """It is told of when it is open again, and refused where it is not put back."""
    rig, told = without_broker, Told()

    def serve() -> None:
        engine = engine_of(rig, told, restore)
        engine.load()
        for number in range(CALLS):
            engine.open(0, Open(number, conversation(target=Endpoint(CLIENT, 10000 + number))))
        engine.flush()
        told.answers.clear()
        phone, far = talk(rig, phones)
        engine.stale._early._next_at = time.monotonic() + WITHHELD
        engine.open(0, Open(1000, conversation()))
        engine.flush()
        assert told.answers == []  # it is withheld
        nft(rig, "delete table inet algate")
        if step == "noticed before":
            engine._guard.table_gone()
        else:
            engine.open(0, Open(1001, conversation(target=Endpoint(CLIENT, 9000))))
        engine.stale._early._next_at = time.monotonic()  # what it waited for may be done now
        end = time.monotonic() + 5
        while not any(answer.id == 1000 for answer in told.answers) and time.monotonic() < end:
            before = len(told.answers)
            engine.tick()
            for answer in told.answers[before:]:
                if isinstance(answer, LeaseOpened):
                    key = f"{{ {answer.lease.public.host} . {answer.lease.public.port} }}"
                    rig.at(rig.router, f"nft get element inet algate public4 {key}")  # it is there, or this fails
            time.sleep(0.01)
        (answer,) = [answer for answer in told.answers if answer.id == 1000]
        if restore:
            assert isinstance(answer, LeaseOpened), answer
            both_ways_at_once(phone, far, answer.lease.public)
        else:
            assert isinstance(answer, RequestRefused), answer
            assert answer.rule == "lease"
        engine.shut_down()

    rig.within(rig.router, serve)


def served_again(rig: Rig, engine: Engine, told: Told) -> None:
    """All that was open is there again, and more can be opened."""
    end = time.monotonic() + 10
    while engine._guard.restoring or not engine.netfilter.is_whole():
        assert time.monotonic() < end, "the table is not restored"
        engine.tick()
        time.sleep(0.01)
    assert rig.count("in4") == CALLS
    engine.open(0, Open(2000, conversation(target=Endpoint(CLIENT, 9000))))
    engine.flush()
    assert isinstance(told.answers[-1], LeaseOpened)
    assert rig.count("in4") == CALLS + 1


def opened(engine: Engine) -> None:
    for number in range(CALLS):
        engine.open(0, Open(number, conversation(target=Endpoint(CLIENT, 10000 + number))))
    engine.flush()


def test_a_reload_right_behind_a_flush(without_broker: Rig) -> None:
    """The rates of the new configuration go to a table that has just gone."""
    rig, told = without_broker, Told()

    def serve() -> None:
        engine = engine_of(rig, told, True)
        engine.load()
        opened(engine)
        nft(rig, "delete table inet algate")
        engine.configure(limits_of(True)._replace(meter=Meter(ports=(5060,), inside=("192.168.56.0/24",), rate=777)))
        served_again(rig, engine, told)
        assert "777/second" in rig.at(rig.router, "nft list table inet algate")
        engine.shut_down()

    rig.within(rig.router, serve)


@contextlib.contextmanager
def no_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel answers nothing, as where it is busy with the rules of others."""
    silent, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with silent, other, monkeypatch.context() as patch:
        patch.setattr(netlink, "NETLINK_DEADLINE", 0.05)
        patch.setattr(engine.netfilter._netlink, "_socket", silent)
        yield


@contextlib.contextmanager
def no_nft(_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(netfilter._FIND_NFT, "PATH", "/nowhere")
        yield


@pytest.mark.parametrize("begun", [False, True], ids=["before it looks", "while it restores"])
@pytest.mark.parametrize("trouble", [no_answer, no_nft])
def test_what_is_not_done_at_once_is_tried_again(
    without_broker: Rig, trouble: Callable[..., Any], begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table goes while the kernel, or nft, has trouble: all is restored when that is over."""
    rig, told = without_broker, Told()
    monkeypatch.setattr(guard, "AGAIN", 0.2)

    def serve() -> None:
        engine = engine_of(rig, told, True)
        engine.load()
        opened(engine)
        nft(rig, "delete table inet algate")
        if begun:
            engine._guard.table_gone()
            assert engine._guard.restoring
        with trouble(engine, monkeypatch):
            engine.others_changed(Changes())
            until, turns = time.monotonic() + 1, 0
            while (now := time.monotonic()) < until:
                time.sleep(max(0.0, min(engine.deadline(), until) - now))
                engine.tick()
                turns += 1
        assert turns < 200, "it turns in circles"
        served_again(rig, engine, told)
        engine.shut_down()

    rig.within(rig.router, serve)

"""What others do to the broker's table: it is noticed by the kernel's events, put back with all that is open, and
media of running calls go on."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alg.address import Endpoint
from gateway.broker.netfilter import Netfilter
from gateway.broker.ruleset_watch import Changes, RulesetWatch
from tests.net.broker_rig import (
    CLIENT,
    CLIENT6,
    PUBLIC6,
    SERVER,
    SERVER6,
    STRANGER,
    Phones,
    Rig,
    inbound,
    outbound,
    run,
    wait_for,
)
from tests.net.test_broker_udp import conversation, gets, gets_nothing, of

pytestmark = pytest.mark.net

NOTICED = 2.0  # seconds

WAYS = {
    "flush ruleset": "flush ruleset",
    "delete table": "delete table inet algate",
    "only the rules": "flush table inet algate",
    "only a chain's rules": "flush chain inet algate admit",
    "only the elements of a map": "flush map inet algate many4",
    "only its keys": "flush set inet algate manykeys4",
    "only the elements of a set": "flush set inet algate in4; flush set inet algate out4",
    "elements of one use": "flush set inet algate once4; flush map inet algate dnat4",
    "a chain": "flush chain inet algate clean; delete chain inet algate clean",
    "a set": "flush chain inet algate admit; flush chain inet algate local; delete set inet algate talked4",
    "gone and another ruleset in its place": (
        "flush ruleset; add table inet filter; add chain inet filter forward { type filter hook forward priority 0;}"
    ),
}


def nft(rig: Rig, commands: str) -> None:
    """All of them at once: the broker does not wait until a second one comes."""
    run("ip", "netns", "exec", rig.router, "nft", commands)


def is_whole(rig: Rig) -> bool:
    return rig.within(rig.router, lambda: Netfilter(rig.table).is_whole())


def whole_again(rig: Rig, elements: dict[str, int]) -> None:
    """Within two seconds, and without being asked anything."""
    end = time.monotonic() + NOTICED
    while not (is_whole(rig) and {name: rig.count(name) for name in elements} == elements):
        assert time.monotonic() < end, {name: rig.count(name) for name in elements}
        time.sleep(0.02)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_is_open_is_put_back_and_media_go_on(rig: Rig, phones: Phones, way: str) -> None:
    call = rig.open(conversation(second=4001))
    offer = rig.open(conversation(target=Endpoint(CLIENT, 4002), peers=()))
    other = rig.open(
        conversation(client=CLIENT6, target=Endpoint(CLIENT6, 4000), public_host=PUBLIC6, peers=(SERVER6,))
    )
    waiting = rig.open(inbound())
    passive = rig.open(outbound())
    used = rig.open(inbound(target=Endpoint(CLIENT, 50001)))
    data = rig.listen(rig.inside, CLIENT, 50001)
    first = rig.connect(rig.outside, used.public, SERVER)
    accepted, _ = data.accept()
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, call.public) == of(far)
    assert gets(far, phone, of(far)) == call.public
    names = ("snat4", "snat6", "many4", "many6", "in4", "out4", "in6", "out6", "once4", "manykeys4", "snatkeys4")
    before = {name: rig.count(name) for name in names}
    assert before["once4"] == 2
    nft(rig, way)
    whole_again(rig, before)
    assert gets(phone, far, call.public) == of(far)
    assert gets(far, phone, of(far)) == call.public
    another = phones.at(rig.outside, SERVER)  # a connection that began after it
    assert gets(phone, another, call.public) == of(another)
    first.sendall(b"the transfer goes on")
    assert accepted.recv(100) == b"the transfer goes on"
    accepted.close()
    with pytest.raises((ConnectionRefusedError, TimeoutError)):  # used is used
        rig.connect(rig.outside, used.public, SERVER, timeout=0.5)
    listening = rig.listen(rig.inside, CLIENT, 50000)
    rig.connect(rig.outside, waiting.public, SERVER)
    listening.accept()[0].close()
    left = {row["id"] for row in rig.pinholes()}
    assert left == {call.id, offer.id, other.id, passive.id}


def test_a_single_use_that_nobody_had_seen_yet_is_not_given_back(rig: Rig) -> None:
    """The broker looks once a second what was used; the ruleset goes in between."""
    lease = rig.open(inbound())
    listening = rig.listen(rig.inside, CLIENT, 50000)
    rig.connect(rig.outside, lease.public, SERVER)
    nft(rig, "flush ruleset")
    wait_for(lambda: is_whole(rig), "the table")
    wait_for(lambda: rig.pinholes() == [], "it to be known as used")
    assert rig.count("once4") == 0
    listening.close()


@pytest.mark.rig(per_client=4000, rate=1e6, ports="40000-49999")
def test_thousands_are_put_back_while_workers_are_served(rig: Rig) -> None:
    for number in range(1500):
        rig.open(conversation(target=Endpoint(CLIENT, 30000 + number)))
    nft(rig, "flush ruleset")
    wait_for(lambda: is_whole(rig), "the table")
    begun = time.monotonic()
    rig.open(conversation(target=Endpoint(CLIENT, 9000)))
    assert time.monotonic() - begun < 0.5
    wait_for(lambda: rig.count("in4") == 1501, "all of them")


def test_whoever_removes_it_again_and_again_is_left_alone_for_a_while(rig: Rig, tmp_path: Path) -> None:
    rig.open(conversation())
    for _ in range(5):
        nft(rig, "delete table inet algate")
        wait_for(lambda: is_whole(rig), "the table")
    nft(rig, "delete table inet algate")
    wait_for(lambda: "broker.table_disputed" in (tmp_path / "log").read_text(), "the broker to say so")
    assert not is_whole(rig)
    answer = rig.ask(inbound())  # refused at once, and the broker lives
    assert "again and again" in repr(answer)
    assert (tmp_path / "log").read_text().count("broker.table_disputed") == 1
    assert rig.broker is not None
    assert rig.broker.poll() is None


def test_sets_that_are_emptied_again_and_again_do_not_keep_nft_busy(rig: Rig) -> None:
    rig.open(conversation())
    for _ in range(5):
        nft(rig, "flush set inet algate inside4")
        wait_for(lambda: rig.count("inside4") == 1, "the networks to be back")
    nft(rig, "flush set inet algate inside4; flush set inet algate in4")
    wait_for(lambda: rig.count("in4") == 1, "what is open to be back")  # and so it has looked
    assert rig.count("inside4") == 0
    nft(rig, "delete table inet algate")
    wait_for(lambda: is_whole(rig) and rig.count("inside4") == 1, "the table")


@pytest.mark.rig(restore=False)
def test_where_it_is_not_wanted_it_is_not_put_back(rig: Rig) -> None:
    rig.open(conversation())
    nft(rig, "delete table inet algate")
    wait_for(lambda: rig.pinholes() == [], "it to be noticed")
    assert not is_whole(rig)
    lease = rig.open(inbound())
    assert is_whole(rig)
    assert [row["id"] for row in rig.pinholes()] == [lease.id]


def test_what_broke_while_no_broker_lived_is_mended_by_the_next_one(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation())
    rig.kill()
    nft(rig, "flush table inet algate")  # the elements are there
    rig.start()
    assert is_whole(rig)
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)


def test_changes_elsewhere_and_our_own_change_nothing(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation())
    nft(rig, "add table inet other; add set inet other s { type ipv4_addr;}; add element inet other s {192.0.2.1}")
    nft(rig, "flush set inet other s; delete table inet other")
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)
    assert gets_nothing(phone, phones.at(rig.outside, STRANGER), lease.public)


def test_the_watch_tells_of_others_and_not_of_one_socket(rig: Rig) -> None:
    def watched() -> tuple[list[Changes | None], list[Changes | None]]:
        table = Netfilter("mine")
        table.load()
        all_but_own, generations = RulesetWatch(), RulesetWatch()
        all_but_own.leave_out_port(table.port, "mine")
        generations.only_generations(without_pid=threading.get_native_id())
        table.unload()
        table.load()  # by nft, a process of its own
        own = (all_but_own.read(), generations.read())
        table.unload()
        seen = (all_but_own.read(), generations.read())
        return [*own], [*seen]

    by_nft, by_us = rig.within(rig.router, watched)
    assert by_nft[0] is not None
    assert by_nft[1] is not None
    assert by_us == [None, None]


def test_more_changes_than_the_kernel_can_tell_are_a_reason_to_look_at_everything() -> None:
    class Deaf:
        """A netlink socket whose buffer has run over."""

        def __init__(self) -> None:
            self.answers: list[Callable[[], bytes]] = [self.overrun, self.nothing]

        def recv(self, _size: int) -> bytes:
            return self.answers.pop(0)()

        def overrun(self) -> bytes:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        def nothing(self) -> bytes:
            raise BlockingIOError

    watch = RulesetWatch.__new__(RulesetWatch)
    watch._socket = Deaf()  # type: ignore[assignment]
    assert watch.read() == Changes(lost=True)

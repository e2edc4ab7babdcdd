"""Which connections contradict the open pinholes."""

from __future__ import annotations

import errno
import math
import select
import threading
import time
from collections.abc import Callable, Collection

import msgspec
import pytest

from alg.address import Endpoint
from gateway.broker.conntrack import Conntrack, Tracked, TrackedEnd, TrackedEntry
from gateway.broker.elements import talked_of
from gateway.broker.marks import MEDIA
from gateway.broker.netlink import NetfilterError
from gateway.broker.stale import LATER, SHARE, SLICE, SOON, Right, Stale, _is_right, _pairs, sockets_of
from gateway.model.requests import Lease

TARGET, PUBLIC = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.2", 40000)
PEER, OTHER, ROUTER = Endpoint("203.0.113.10", 9), Endpoint("203.0.113.66", 9), Endpoint("203.0.113.2", 5060)
LEASE = Lease(
    "0" * 16, "f", "sip", TARGET.host, "in", "udp", PUBLIC, TARGET, None, 1.0, "kernel", "conversation", (PEER.host,)
)


def connection(source: Endpoint, destination: Endpoint, answers: Endpoint, to: Endpoint, mark: int = 0) -> Tracked:
    return Tracked(
        TrackedEnd(source, source=True),
        TrackedEnd(destination, source=False),
        TrackedEnd(answers, source=True),
        TrackedEnd(to, source=False),
        mark,
    )


def stays(found: Tracked, *leases: Lease) -> bool:
    right: Right = {}
    for lease in leases:
        for sock, other in _pairs(lease):
            right.setdefault(sock, []).append((lease, other))
    return _is_right(found, set(sockets_of(LEASE)), right)


OUT = connection(TARGET, PEER, PEER, PUBLIC, MEDIA)
IN = connection(PEER, PUBLIC, TARGET, PEER, MEDIA)


def test_what_the_pinhole_itself_makes_stays() -> None:
    assert stays(OUT, LEASE)
    assert stays(IN, LEASE)


def test_after_its_end_nothing_does() -> None:
    assert not stays(OUT)
    assert not stays(IN)


def test_what_was_there_before_goes() -> None:
    assert not stays(connection(TARGET, PEER, PEER, ROUTER), LEASE)  # from another public port
    assert not stays(connection(PEER, PUBLIC, PUBLIC, PEER), LEASE)  # to this host itself


@pytest.mark.parametrize(("peers", "stayed"), [((), False), ((OTHER.host,), False), (None, True)])
def test_a_change_of_peers(peers: tuple[str, ...] | None, stayed: bool) -> None:
    changed = msgspec.structs.replace(LEASE, peers=peers)
    assert stays(OUT, changed) is stayed  # it is marked, and would be dropped
    assert stays(IN, changed) is stayed


def test_a_connection_out_to_nobody_in_particular_stays() -> None:
    """Signalling: nobody may come in, and the phone's own server answers all the same."""
    assert stays(connection(TARGET, OTHER, OTHER, PUBLIC), LEASE)


def test_others_are_not_ours() -> None:
    assert stays(connection(OTHER, ROUTER, ROUTER, OTHER), LEASE)


def test_a_look_keeps_nobody_waiting_and_what_opens_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    deleted: list[Tracked] = []
    wrong = connection(TARGET, PEER, PEER, ROUTER)

    def find(_: Conntrack, sockets: Collection[Endpoint]) -> list[TrackedEntry]:
        assert set(sockets) == {PUBLIC, TARGET}
        assert may_end.wait(10)
        return [TrackedEntry(connection, 4, b"") for connection in (OUT, IN, wrong)]

    def delete(_: Conntrack, found: TrackedEntry) -> bool:
        deleted.append(found.connection)
        return True

    monkeypatch.setattr(Conntrack, "find", find)
    monkeypatch.setattr(Conntrack, "delete", delete)
    monkeypatch.setattr("gateway.broker.stale.LATER", 0.0)
    monkeypatch.setattr("gateway.broker.stale.SOON", 0.0)
    leases: list[Lease] = []
    stale = Stale(lambda _: leases, lambda _: False)
    stale.closed(LEASE)
    stale.tick()
    stale.tick()
    assert math.isinf(stale.deadline())  # under way
    assert not deleted
    leases.append(LEASE)  # opened again, while the kernel is walking
    stale.opened(LEASE)
    assert math.isinf(stale.deadline())  # one look at a time
    may_end.set()
    assert select.select([stale.wake], [], [], 10)[0]
    stale.tick()
    assert deleted == [wrong]
    assert stale.deadline() < math.inf  # and another look, for what has changed meanwhile
    stale.forget()
    assert deleted == [wrong, wrong]
    assert math.isinf(stale.deadline())


def wait_for_thread(stale: Stale, lease: Lease) -> None:
    """It does one thing after the other, and the last one now."""
    stale.disturbed(lease)
    stale.forget()


OLD = Endpoint("203.0.113.2", 40200)
LEFT = {
    "begun outside": connection(PEER, OLD, TARGET, PEER, MEDIA),
    "begun inside": connection(TARGET, PEER, PEER, OLD, MEDIA),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("when", ["known", "later", "opened again", "of another", "failed"])
def test_a_broker_that_has_just_begun_deletes_what_is_left_of_pinholes_before(
    monkeypatch: pytest.MonkeyPatch, left: str, when: str
) -> None:
    may_end = threading.Event()
    deleted: list[Tracked] = []

    def marked(_: Conntrack, mark: int) -> list[TrackedEntry]:
        assert mark == MEDIA
        may_end.wait(10)
        if when == "failed":
            raise NetfilterError(errno.ENOBUFS, "no room")
        return [TrackedEntry(LEFT[left], 4, b"")]

    def delete(_: Conntrack, found: TrackedEntry) -> bool:
        deleted.append(found.connection)
        return True

    monkeypatch.setattr(Conntrack, "find", lambda _, sockets: [])
    monkeypatch.setattr(Conntrack, "marked", marked)
    monkeypatch.setattr(Conntrack, "delete", delete)
    lease = LEASE
    if when == "opened again":
        lease = msgspec.structs.replace(LEASE, public=OLD)
    if when == "of another":
        lease = msgspec.structs.replace(LEASE, target=TARGET._replace(port=TARGET.port + 2))
    stale = Stale(lambda _: [lease], lambda _: False)
    stale.begin()
    if when != "later":
        may_end.set()
        wait_for_thread(stale, lease)
    stale.opened(lease)
    if when == "later":
        assert not deleted
        may_end.set()
        assert select.select([stale.wake], [], [], 10)[0]
    stale.tick()
    assert deleted == ([LEFT[left]] if when in ("known", "later") else [])


def opened_for_nobody(stale: Stale, lease: Lease) -> None:
    stale.opened(msgspec.structs.replace(lease, peers=()))


def test_where_the_peer_is_known_it_is_looked_for_at_once_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Collection[Endpoint]] = []
    deleted: list[Tracked] = []
    wrong = connection(TARGET, PEER, PEER, ROUTER)

    def find(_: Conntrack, sockets: Collection[Endpoint]) -> list[TrackedEntry]:
        looks.append(set(sockets))  # it is emptied afterwards
        time.sleep(0.02)  # what such a look costs
        return [TrackedEntry(connection, 4, b"") for connection in (OUT, wrong)]

    def delete(_: Conntrack, found: TrackedEntry) -> bool:
        deleted.append(found.connection)
        return True

    monkeypatch.setattr(Conntrack, "find", find)
    monkeypatch.setattr(Conntrack, "delete", delete)
    stale = Stale(lambda _: [LEASE], lambda asked: talked_of(TARGET) in asked)
    assert stale.opened(LEASE) == 1
    assert stale.opened(LEASE) == 1
    assert stale.settle() == 0  # the thread is asked
    assert stale.deadline() > time.monotonic()
    assert stale.opened(LEASE) == 2  # not for this search any more
    settles(stale, 1)
    assert (looks, deleted) == ([{PUBLIC, TARGET}], [wrong])  # for all of them together
    assert stale.settle() == 1  # a tenth of the time is for that
    assert len(looks) == 1
    assert 0 < stale.deadline() - time.monotonic() <= SHARE * 0.05
    settles(stale, 2)
    assert len(looks) == 2


def settles(stale: Stale, batch: int) -> None:
    """It is called whenever it asks for that, until this batch is done."""
    ends = time.monotonic() + 10
    while stale.settle() < batch:
        assert time.monotonic() < ends
        select.select([stale.wake], [], [], max(0.0, min(stale.deadline() - time.monotonic(), 0.1)))


def test_nobody_waits_long_for_a_look_however_long_looks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: Conntrack, _sockets: object) -> list[object]:
        time.sleep(0.05)
        return []

    monkeypatch.setattr(Conntrack, "find", find)
    monkeypatch.setattr("gateway.broker.stale.LONGEST", 0.1)
    stale = Stale(lambda _: [LEASE], lambda _: True)
    stale.opened(LEASE)
    settles(stale, 1)
    assert stale.opened(LEASE) == 2
    assert stale.settle() == 1
    assert stale.deadline() - time.monotonic() <= 0.1
    settles(stale, 2)


def test_a_search_that_fails_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: Conntrack, _sockets: object) -> list[object]:
        raise NetfilterError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(Conntrack, "find", find)
    stale = Stale(lambda _: [LEASE], lambda _: True)
    assert stale.opened(LEASE) == 1
    settles(stale, 1)
    assert stale.deadline() - time.monotonic() <= SOON  # it is asked for again, without anybody waiting


def test_what_opens_while_a_search_is_judged_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with many connections of one socket, and others that talk early meanwhile: all of them are told."""
    wrong = [connection(TARGET, PEER._replace(port=port), PEER, ROUTER) for port in range(1, 3 * SLICE)]
    deleted: list[Tracked] = []

    def delete(_: Conntrack, found: TrackedEntry) -> bool:
        deleted.append(found.connection)
        return True

    monkeypatch.setattr(Conntrack, "find", lambda _, sockets: [TrackedEntry(found, 4, b"") for found in wrong])
    monkeypatch.setattr(Conntrack, "delete", delete)
    monkeypatch.setattr("gateway.broker.stale.SHARE", 0)
    stale = Stale(lambda _: [LEASE], lambda _: True)
    assert stale.opened(LEASE) == 1
    assert stale.settle() == 0
    assert select.select([stale.wake], [], [], 10)[0]
    assert stale.settle() == 0  # some of it is judged
    assert len(deleted) == SLICE
    assert stale.opened(LEASE) == 2
    settles(stale, 1)
    settles(stale, 2)
    assert len(deleted) == 2 * len(wrong)


@pytest.mark.parametrize("early", [False, True])
def test_tens_of_thousands_of_connections_of_a_socket_are_deleted_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """20,000 of one client's socket held up every other opening for more than half a second."""
    wrong = [connection(TARGET, PEER._replace(port=port), PEER, ROUTER) for port in range(1, 20_001)]
    deleted: list[Tracked] = []

    def delete(_: Conntrack, found: TrackedEntry) -> bool:
        deleted.append(found.connection)
        return True

    monkeypatch.setattr(Conntrack, "find", lambda _, sockets: [TrackedEntry(found, 4, b"") for found in wrong])
    monkeypatch.setattr(Conntrack, "delete", delete)
    monkeypatch.setattr("gateway.broker.stale.LATER", 0.0)
    stale = Stale(lambda _: [LEASE], lambda _: early)
    stale.opened(LEASE)
    go_on = stale.settle if early else stale.tick
    steps = []
    ends = time.monotonic() + 60
    while len(deleted) < len(wrong):
        before = len(deleted)
        go_on()
        steps.append(len(deleted) - before)
        assert time.monotonic() < ends
        if math.isinf(stale.deadline()):
            assert select.select([stale.wake], [], [], 10)[0]
    assert max(steps) == SLICE
    assert not early or stale.settle() == 1


@pytest.mark.parametrize(
    ("change", "talked", "soon"),
    [
        (opened_for_nobody, {TARGET}, True),  # the phone spoke before, from another public port
        (Stale.opened, {PUBLIC}, False),  # nobody is let in yet: that is asked when somebody is
        (Stale.opened, set(), False),
        (Stale.admitted, {PUBLIC}, True),  # the peer came too early
        (Stale.admitted, {TARGET}, False),
        (Stale.closed, {TARGET, PUBLIC}, False),  # what is left of it passes no more
    ],
)
def test_it_is_looked_for_soon_where_it_matters_now(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Stale, Lease], None], talked: set[Endpoint], soon: bool
) -> None:
    looks: list[Collection[Endpoint]] = []

    def find(_: Conntrack, sockets: Collection[Endpoint]) -> list[TrackedEntry]:
        looks.append(sockets)
        return []

    monkeypatch.setattr(Conntrack, "find", find)
    monkeypatch.setattr("gateway.broker.stale.SOON", 0.0)
    stale = Stale(lambda _: (), lambda asked: not {talked_of(sock) for sock in talked}.isdisjoint(asked))
    change(stale, LEASE)
    stale.tick()
    if soon:
        assert select.select([stale.wake], [], [], 10)[0]
        assert looks
    else:
        assert not looks
        assert stale.deadline() - time.monotonic() > LATER / 2
        stale.forget()
        assert looks  # all the same


@pytest.mark.parametrize("change", [opened_for_nobody, Stale.admitted])
def test_a_second_port_is_asked_about_too(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Stale, Lease], None]
) -> None:
    """A phone whose reports (RTCP) alone were early, or those of its peer."""
    lease = msgspec.structs.replace(LEASE, second=TARGET.port + 1)
    seconds = [Endpoint(one.host, one.port + 1) for one in (TARGET, PUBLIC)]
    monkeypatch.setattr(Conntrack, "find", lambda _, sockets: [])
    monkeypatch.setattr("gateway.broker.stale.SOON", 0.0)
    stale = Stale(lambda _: (), lambda asked: not {talked_of(one) for one in seconds}.isdisjoint(asked))
    change(stale, lease)
    stale.tick()
    assert select.select([stale.wake], [], [], 10)[0]


def test_a_socket_that_had_a_pinhole_a_moment_ago_is_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conntrack, "find", lambda _, sockets: [])
    stale = Stale(lambda _: (), lambda _: False)
    stale.closed(LEASE)
    stale.opened(LEASE)
    assert stale.deadline() - time.monotonic() <= SOON

"""Which public ports are given out: nobody can guess the next one, and no two leases share one."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from alg.address import Endpoint
from alg.bucket import Rate
from gateway.lease.ports import REST
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from tests.unit.broker.test_validate import INBOUND

CELLS = 100
UNLIKELY = 172.0
"""Chi-square of 99 degrees of freedom that chance passes once in 100,000 runs."""


def pair(port: int = 4000) -> PinholeRequest:
    return msgspec.structs.replace(
        INBOUND,
        transport="udp",
        kind="conversation",
        peer=None,
        peers=(INBOUND.peer or "",),
        target=Endpoint(INBOUND.client, port),
        second=port + 1,
    )


def ports(request: PinholeRequest, count: int) -> list[int]:
    """Public ports of openings one after the other; each is closed at once and may be given out again."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 49999), rate=1e9), hold=0.0)
    rng = random.SystemRandom()  # as the broker has it
    found = []
    for now in range(count):
        lease = table.open(request, now=float(now), unix=0.0, rng=rng, is_free=lambda port: True)
        table.close(lease.id, now=float(now))
        found.append(lease.public.port)
    return found


def chi_square(values: list[int], cells: int) -> float:
    expected = len(values) / cells
    counts = Counter(values)
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells))


@pytest.mark.parametrize("request_", [INBOUND, pair()], ids=["single", "pair"])
def test_ports_are_random(request_: PinholeRequest) -> None:
    found = ports(request_, 20_000)
    assert chi_square([(port - 40000) * CELLS // 10_000 for port in found], CELLS) < UNLIKELY
    # Nor does one port say anything of the next.
    step = 1 if request_.second is None else 2
    distances = [(after - before) // step % CELLS for before, after in pairwise(found)]
    assert chi_square(distances, CELLS) < UNLIKELY


def test_the_test_can_fail() -> None:
    in_order = list(range(10_000))
    assert chi_square([port % CELLS for port in in_order], CELLS) < UNLIKELY
    assert chi_square([(after - before) % CELLS for before, after in pairwise(in_order)], CELLS) > UNLIKELY
    assert chi_square([port % (CELLS - 3) for port in in_order], CELLS) > UNLIKELY


def test_a_pair_is_even_and_odd_and_both_are_free() -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40001, 40006), rate=1e9))
    rng = random.Random(1)
    taken = {40003}
    lease = table.open(pair(), now=0.0, unix=0.0, rng=rng, is_free=lambda port: port not in taken)
    assert lease.public.port == 40004  # 40002 has no free neighbour, 40006 none in the range
    with pytest.raises(PinholeRefused, match="ports"):
        table.open(pair(4002), now=0.0, unix=0.0, rng=rng, is_free=lambda port: port not in taken)
    single = msgspec.structs.replace(pair(4006), second=None)
    for number in range(3):
        request = msgspec.structs.replace(single, target=Endpoint(INBOUND.client, 4010 + number))
        opened = table.open(request, now=0.0, unix=0.0, rng=rng, is_free=lambda port: port not in taken)
        assert opened.public.port in (40001, 40002, 40006)


def test_both_ports_of_a_pair_rest() -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40001), rate=1e9))
    rng = random.Random(1)
    lease = table.open(pair(), now=0.0, unix=0.0, rng=rng, is_free=lambda port: True)
    table.close(lease.id, now=1.0)
    single = msgspec.structs.replace(pair(), second=None)
    with pytest.raises(PinholeRefused, match="ports"):
        table.open(single, now=10.9, unix=0.0, rng=rng, is_free=lambda port: True)
    table.open(single, now=11.0, unix=0.0, rng=rng, is_free=lambda port: True)


def test_an_extended_lease_lives_on_and_a_shortened_one_does_not() -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099), rate=1e9))
    lease = table.open(pair(), now=0.0, unix=0.0, rng=random.Random(1), is_free=lambda port: True)
    longer = table.changed(PinholeUpdate(lease.id, ttl=100.0), unix=50.0, owner=0)
    table.replace(longer, deadline=150.0)
    assert longer.expires == 150.0
    assert table.expire(60.0) == []
    table.replace(table.changed(PinholeUpdate(lease.id, ttl=5.0), unix=61.0, owner=0), deadline=66.0)
    assert [ended.id for ended in table.expire(66.0)] == [lease.id]
    assert table.expire(150.0) == []
    assert table.deadline() is None


def test_a_client_opens_at_its_rate_and_others_do_not_suffer() -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 49999), per_client=10_000, rate=10.0))
    rng = random.Random(1)
    other = msgspec.structs.replace(INBOUND, client="192.168.56.11", target=Endpoint("192.168.56.11", 50000))

    def opens(request: PinholeRequest, now: float) -> bool:
        try:
            table.open(request, now=now, unix=0.0, rng=rng, is_free=lambda port: True)
        except PinholeRefused as refused:
            return refused.rule != "rate"
        return True

    assert sum(opens(INBOUND, 0.0) for _ in range(1000)) == 20
    assert opens(other, 0.0)
    assert sum(opens(INBOUND, 1.0 + attempt / 1000) for attempt in range(1000)) in (19, 20)


def test_a_rate_forgets_who_was_long_quiet() -> None:
    rate = Rate(1.0, 1.0)
    for key in range(10_000):
        assert rate.take(key, 0.0)
    assert not rate.take(9_999, 0.5)
    assert rate.wait(9_999, 0.5) == pytest.approx(0.5)
    assert rate.take(9_999, 1.0)


def test_a_crowd_of_calls_gets_ports_that_rested_for_a_while_but_not_a_connection() -> None:
    """1,500 calls a second with two streams take 3,000 pairs, and no range has ten times as many."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40003), rate=1e9))
    rng = random.Random(1)

    def open_(request: PinholeRequest, now: float) -> Lease:
        return table.open(request, now=now, unix=0.0, rng=rng, is_free=lambda port: True)

    first = [open_(pair(4000 + 2 * number), 0.0) for number in range(2)]
    for number, lease in enumerate(first):
        table.close(lease.id, now=float(number))
    with pytest.raises(PinholeRefused, match="ports"):
        open_(pair(4010), REST["udp"] - 0.1)
    assert open_(pair(4010), REST["udp"]).public == first[0].public  # who has rested the longest
    with pytest.raises(PinholeRefused, match="ports"):
        open_(pair(4012), REST["udp"])
    assert open_(pair(4012), REST["udp"] + 1.0).public == first[1].public
    with pytest.raises(PinholeRefused, match="ports"):
        open_(pair(4014), 100.0)  # both are somebody's


def test_a_socket_that_asks_again_has_the_port_that_it_had_a_moment_ago() -> None:
    """Connection tracking translates it to that one, until somebody has looked (decision 0035)."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 49999), rate=1e9))
    rng = random.Random(1)
    taken: set[int] = set()

    def open_(request: PinholeRequest, now: float) -> Lease:
        return table.open(request, now=now, unix=0.0, rng=rng, is_free=lambda port: port not in taken)

    lease = open_(pair(), 0.0)
    table.close(lease.id, now=1.0)
    again = open_(pair(), 1.0)
    assert again.public == lease.public
    table.close(again.id, now=2.0)
    # Not one port of the two, nor another kind, another host, or a port that something else has taken meanwhile.
    others = [
        msgspec.structs.replace(pair(), second=None),
        msgspec.structs.replace(pair(), second=4005),
        msgspec.structs.replace(pair(), public_host="203.0.113.2"),
        msgspec.structs.replace(pair(), client="192.168.56.11", target=Endpoint("192.168.56.11", 4000)),
        msgspec.structs.replace(pair(), kind="read", second=None),
    ]
    for request in others:
        other = open_(request, 2.0)
        assert other.public.port not in (lease.public.port, lease.public.port + 1)
        table.close(other.id, now=2.0)
    taken.add(lease.public.port + 1)
    assert open_(pair(), 3.0).public != lease.public


def test_a_port_is_not_kept_for_a_socket_when_it_has_rested_or_is_somebodys() -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40003), rate=1e9))
    rng = random.Random(1)

    def open_(request: PinholeRequest, now: float) -> Lease:
        return table.open(request, now=now, unix=0.0, rng=rng, is_free=lambda port: True)

    first, second = open_(pair(), 0.0), open_(pair(4002), 0.0)
    table.close(first.id, now=0.0)
    other = open_(pair(4010), REST["udp"])  # ports are scarce
    assert other.public == first.public
    with pytest.raises(PinholeRefused, match="ports"):
        open_(pair(), REST["udp"])
    table.close(second.id, now=3.0)
    table.close(other.id, now=3.0)
    table.expire(20.0)
    assert table._ports._latest == {}
    assert table._ports._busy == {}


def test_what_was_open_to_anybody_is_given_to_its_socket_anew() -> None:
    """A mapping or a connection that strangers knew of has another port the next time."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 49999), rate=1e9))
    anybody = msgspec.structs.replace(INBOUND, kind="anybody", peer=None)
    found = []
    for number in range(4):
        now = float(number)
        lease = table.open(anybody, now=now, unix=0.0, rng=random.Random(number), is_free=lambda port: True)
        table.close(lease.id, now=now)
        found.append(lease.public)
    assert len(set(found)) == 4


def test_a_port_of_a_connection_rests_longer_for_the_same_peer() -> None:
    """Its peer may send its SYN again, after 1 and after 3 seconds; a pinhole of another peer lets it in nowhere."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40000), rate=1e9))
    other = msgspec.structs.replace(INBOUND, peer="203.0.113.77")

    def open_(now: float, request: PinholeRequest = INBOUND) -> Lease:
        return table.open(request, now=now, unix=0.0, rng=random.Random(1), is_free=lambda port: True)

    table.close(open_(0.0).id, now=0.0)
    with pytest.raises(PinholeRefused, match="ports"):
        open_(REST["udp"] - 0.1, other)
    table.close(open_(REST["udp"], other).id, now=REST["udp"])
    with pytest.raises(PinholeRefused, match="ports"):
        open_(REST["udp"] + REST["tcp"] - 0.1, other)
    open_(REST["udp"] + REST["tcp"], other)


def test_a_thousand_pinholes_a_second_for_a_minute_find_ports_in_the_default_range() -> None:
    """All of one peer, each closed at once and never used."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 49999), rate=1e9, per_client=10**6))
    rng = random.Random(1)
    for number in range(60_000):
        now = number / 1000
        table.expire(now)
        lease = table.open(INBOUND, now=now, unix=0.0, rng=rng, is_free=lambda port: True)
        table.close(lease.id, now=now)

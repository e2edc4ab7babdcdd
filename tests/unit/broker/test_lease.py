"""The table of leases."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.lease.ports import REST
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable, lease_row
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest
from tests.unit.broker.test_validate import INBOUND, OUTBOUND

UNIX = 1_700_000_000.0


def table(ports: tuple[int, int] = (40000, 40099), per_client: int = 64, total: int = 1000) -> LeaseTable:
    return LeaseTable(backend="kernel", limits=LeaseLimits(ports=ports, per_client=per_client, total=total), hold=10.0)


def open_(
    leases: LeaseTable,
    request: PinholeRequest = INBOUND,
    now: float = 100.0,
    owner: int = 0,
    is_free: Callable[[int], bool] = lambda port: True,
    rng: random.Random | None = None,
) -> Lease:
    return leases.open(request, now=now, unix=UNIX, rng=rng or random.Random(), is_free=is_free, owner=owner)


def test_an_inbound_lease_gets_a_public_port_and_an_outbound_one_none() -> None:
    leases = table()
    inbound, outbound = open_(leases), open_(leases, OUTBOUND)
    assert inbound.public.host == "203.0.113.1"
    assert 40000 <= inbound.public.port <= 40099
    assert inbound.expires == UNIX + 60
    assert outbound.public == outbound.target == OUTBOUND.target
    assert leases.live() == [inbound, outbound]
    assert len(leases) == 2


def test_the_port_is_a_matter_of_the_random_source() -> None:
    ports = [[open_(table(), rng=random.Random(seed)).public.port for seed in range(20)] for _ in range(2)]
    assert ports[0] == ports[1]
    assert len(set(ports[0])) > 10


def test_a_taken_port_is_not_chosen_and_all_taken_is_refused() -> None:
    assert open_(table(), is_free=lambda port: port == 40077).public.port == 40077
    with pytest.raises(PinholeRefused, match="ports"):
        open_(table(), is_free=lambda port: False)


def test_every_port_once_then_none_until_one_has_rested() -> None:
    leases = table(ports=(40000, 40003))
    opened = [open_(leases) for _ in range(4)]
    assert len({lease.public for lease in opened}) == 4
    leases.close(opened[2].id, now=101.0)
    with pytest.raises(PinholeRefused, match="ports"):
        open_(leases, now=101.0 + REST["tcp"] - 0.1)
    assert open_(leases, now=101.0 + REST["tcp"]).public == opened[2].public


def test_quota_is_per_client_and_total_for_all() -> None:
    leases = table(per_client=2, total=3)
    other = msgspec.structs.replace(INBOUND, client="192.168.56.20", target=Endpoint("192.168.56.20", 5000))
    first = open_(leases)
    open_(leases, OUTBOUND)
    with pytest.raises(PinholeRefused, match="quota"):
        open_(leases)
    open_(leases, other)
    with pytest.raises(PinholeRefused, match="full"):
        open_(leases, other)
    leases.close(first.id, now=100.0)
    open_(leases, other)


def test_a_used_lease_counts_no_more_but_keeps_its_port() -> None:
    leases = table(ports=(40000, 40000), per_client=1)
    lease = open_(leases)
    leases.use(lease.id)
    leases.use(lease.id)
    assert leases.live() == []
    assert len(leases) == 0
    with pytest.raises(PinholeRefused, match="ports"):
        open_(leases)
    assert leases.expire(160.0) == []  # it was used: nothing expired
    with pytest.raises(PinholeRefused, match="ports"):
        open_(leases, now=160.0 + REST["tcp"] - 0.1)
    open_(leases, now=160.0 + REST["tcp"])


def test_leases_expire_in_time_and_only_then() -> None:
    leases = table()
    long, short = open_(leases), open_(leases, msgspec.structs.replace(INBOUND, ttl=5.0))
    assert leases.deadline() == 105.0
    assert leases.expire(104.9) == []
    assert leases.expire(105.0) == [short]
    assert leases.live() == [long]
    assert leases.expire(200.0) == [long]
    assert leases.expire(300.0) == []
    assert leases.deadline() is None


def test_close_by_id_and_owner() -> None:
    leases = table()
    mine, theirs = open_(leases, owner=0), open_(leases, owner=1)
    assert leases.close(mine.id, now=100.0, owner=1) is None
    assert leases.close("ffffffffffffffff", now=100.0) is None
    assert leases.close_owner(1, now=100.0) == [theirs]
    assert leases.close_all(now=100.0) == [mine]
    assert leases.of_client(INBOUND.client) == []


def test_a_row_is_plain() -> None:
    row = lease_row(open_(table()))
    assert {"id", "protocol", "public", "target", "peer", "reason", "flow", "expires"} <= row.keys()
    assert row["target"] == "192.168.56.10:50000"
    msgspec.json.encode(row)


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "use", "expire"]), st.integers(0, 9), st.floats(0, 20))))
def test_no_port_is_held_twice_and_no_quota_is_passed(steps: list[tuple[str, int, float]]) -> None:
    leases = table(ports=(40000, 40009), per_client=5)
    now, rng = 0.0, random.Random(1)
    closed: dict[Endpoint, float] = {}
    for action, which, pause in steps:
        now += pause
        live = leases.live()
        if action == "open":
            try:
                lease = open_(leases, now=now, rng=rng)
            except PinholeRefused:
                continue
            assert closed.get(lease.public, -1e9) + 10.0 <= now
        elif action == "expire":
            for lease in leases.expire(now):
                closed[lease.public] = now
        elif live:
            lease = live[which % len(live)]
            if action == "use":
                leases.use(lease.id)
            else:
                leases.close(lease.id, now=now)
                closed[lease.public] = now
        publics = [lease.public for lease in leases.live()]
        assert len(publics) == len(set(publics)) == len(leases) <= 5


def test_what_a_client_outside_opens_counts_as_its_own_and_not_as_the_servers() -> None:
    leases = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40999), per_client=3, total=12))
    visitors = [msgspec.structs.replace(INBOUND, visitor=f"203.0.113.{last}") for last in (7, 8, 9)]
    held = [open_(leases, visitors[0]) for _ in range(3)]
    with pytest.raises(PinholeRefused, match=r"203\.0\.113\.7 holds 3"):
        open_(leases, visitors[0])
    for _ in range(3):
        open_(leases, visitors[1])
    with pytest.raises(PinholeRefused, match="clients outside hold 6") as refusal:  # half of all
        open_(leases, visitors[2])
    assert refusal.value.rule == "full"
    for _ in range(3):
        open_(leases)  # for the inside there is room
    leases.close(held[0].id, now=100.0)
    open_(leases, visitors[2])
    assert len(leases.of_client("203.0.113.7")) == 2


def test_the_rate_of_a_client_outside_is_its_own() -> None:
    leases = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40999), rate=1.0))
    greedy = msgspec.structs.replace(INBOUND, visitor="203.0.113.7")
    for _ in range(2):
        open_(leases, greedy)
    with pytest.raises(PinholeRefused, match="too fast"):
        open_(leases, greedy)
    open_(leases, msgspec.structs.replace(INBOUND, visitor="203.0.113.8"))
    open_(leases)

"""Which call IDs the servers of PPTP are to use."""

from __future__ import annotations

import random

import msgspec
import pytest

from alg.address import Endpoint
from gateway.lease.calls import REST
from gateway.lease.quotas import QUOTAS, LeaseLimits
from gateway.lease.table import LeaseTable
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from tests.unit.broker.test_validate import GRE

ONE, TWO = GRE.client, "192.168.56.11"


class Calls:
    def __init__(self) -> None:
        self.table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099)))
        self.now = 0.0
        self.rng = random.Random(4)

    def open(self, client: str = ONE, call_id: int = 7, **changes: object) -> Lease:
        request: PinholeRequest = msgspec.structs.replace(
            GRE, client=client, target=Endpoint(client, call_id), **changes
        )
        return self.table.open(request, now=self.now, unix=0.0, rng=self.rng, is_free=lambda port: False)

    def close(self, lease: Lease) -> None:
        assert self.table.close(lease.id, now=self.now) == lease


def test_each_call_has_an_id_of_its_own_towards_its_server() -> None:
    calls = Calls()
    first, second, again = calls.open(), calls.open(TWO), calls.open(ONE)
    assert first.public.port == 7
    assert len({first.public.port, second.public.port, again.public.port}) == 3
    assert calls.open(TWO, peer="203.0.113.6").public.port == 7  # another server tells them apart
    assert [lease.target.port for lease in (first, second, again)] == [7, 7, 7]


def test_an_id_rests_before_it_is_another_clients() -> None:
    calls = Calls()
    calls.close(calls.open())
    assert calls.open(TWO).public.port != 7
    own = calls.open(ONE)
    assert own.public.port == 7
    calls.close(own)
    calls.now += REST - 1
    assert calls.open(TWO).public.port != 7
    calls.now += 2
    assert calls.open(TWO).public.port == 7


def test_where_nothing_is_translated_there_is_no_other_id() -> None:
    calls = Calls()
    first = calls.open(public_host=None)
    assert first.public == first.target
    with pytest.raises(PinholeRefused) as refused:
        calls.open(public_host=None)
    assert refused.value.rule == "ports"
    assert calls.open(TWO, public_host=None).public == Endpoint(TWO, 7)


def test_no_two_calls_have_one_key_in_the_kernel() -> None:
    """The packets of a client are told apart by its own address, whatever the public one of a call is."""
    calls = Calls()
    first = calls.open(public_host=GRE.public_host, second=40)
    assert calls.open(public_host="203.0.113.2").public.port != first.public.port
    with pytest.raises(PinholeRefused) as refused:
        calls.open(public_host=None)
    assert refused.value.rule == "ports"
    with pytest.raises(PinholeRefused) as refused:
        calls.open(call_id=8, second=40)
    assert refused.value.rule == "taken"
    other = calls.open(call_id=9)
    with pytest.raises(PinholeRefused) as refused:
        calls.table.changed(PinholeUpdate(other.id, second=40), unix=0.0, owner=0)
    assert refused.value.rule == "taken"
    calls.close(first)
    assert calls.table.changed(PinholeUpdate(other.id, second=40), unix=0.0, owner=0).second == 40


def test_the_servers_call_id_is_told_later() -> None:
    calls = Calls()
    lease = calls.open()
    new = calls.table.changed(PinholeUpdate(lease.id, second=40, ttl=9.0), unix=0.0, owner=0)
    assert (new.second, new.public, new.target, new.expires) == (40, lease.public, lease.target, 9.0)


def test_a_client_has_a_few_calls() -> None:
    calls = Calls()
    for number in range(QUOTAS["calls"]):
        calls.open(call_id=number)
        calls.now += 1
    with pytest.raises(PinholeRefused) as refused:
        calls.open(call_id=99)
    assert refused.value.rule == "quota"

"""The table of mappings: who holds what, what is refused and why, what listeners are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.front.portmap.table import (
    HolderName,
    MappingEvent,
    MappingLimits,
    MappingRequest,
    MappingTable,
    Refusal,
    clean,
)

CLIENT, OTHER = "192.168.56.10", "192.168.56.11"
PUBLIC = "203.0.113.2"


def request(port: int = 5000, **changes: Any) -> MappingRequest:
    base: dict[str, Any] = {"client": CLIENT, "transport": "udp", "holder": "pcp", "lifetime": 600, "credential": "aa"}
    return MappingRequest(port=port, **{**base, **changes})


class Table(MappingTable):
    """A table whose broker grants everything, and which remembers what was told."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(MappingLimits(**limits))
        self.events: list[tuple[str, str]] = []
        self.listeners.append(self._hear)
        self.leases = 0

    def _hear(self, event: MappingEvent) -> None:
        self.events.append((event.what, event.by))

    def grant(self, request: MappingRequest, now: float = 0.0) -> str:
        there = self.check(request)
        self.leases += 1
        public = there.public if there is not None else Endpoint(PUBLIC, self.suggestion(request))
        hold = self.wanted(request, now)
        hold.lease = f"lease{self.leases}"
        self.hold(request, public, hold)
        return f"lease{self.leases}"

    def refuses(self, request: MappingRequest) -> str:
        with pytest.raises(Refusal) as refused:
            self.check(request)
        return refused.value.why


def test_a_mapping_ends_with_its_last_holder() -> None:
    table = Table()
    first = table.grant(request())
    second = table.grant(request(holder="upnp", credential="", lifetime=0, description="a game"))
    assert len(table) == 1
    [mapping] = table.of_client(CLIENT)
    assert {*mapping.holds} == {"pcp", "upnp"}
    assert mapping.left("upnp", 0.0) == 604800  # "without an end"
    assert table.release(mapping.key, "pcp", "aa").lease == first
    assert table.find(mapping.key) is mapping
    assert table.release(mapping.key, "upnp").lease == second
    assert (len(table), table.of_client(CLIENT)) == (0, [])
    assert table.events == [("opened", "pcp"), ("renewed", "upnp"), ("renewed", "pcp"), ("closed", "upnp")]


def test_another_credential_neither_renews_nor_ends() -> None:
    table = Table()
    table.grant(request())
    assert table.refuses(request(credential="bb")) == "foreign"
    with pytest.raises(Refusal, match="foreign"):
        table.release((CLIENT, "udp", 5000), "pcp", "bb")
    with pytest.raises(Refusal, match="none"):
        table.release((OTHER, "udp", 5000), "pcp", "aa")
    assert len(table) == 1


def test_a_client_is_told_of_its_own_only() -> None:
    table = Table()
    table.grant(request())
    table.grant(request(client=OTHER, suggested_port=6000))
    assert [mapping.client for mapping in table.of_client(CLIENT)] == [CLIENT]
    assert table.at_public(CLIENT, "udp", 6000) is None
    assert table.at_public(OTHER, "udp", 6000) is not None
    assert table.of_client(CLIENT, "upnp") == []


@pytest.mark.parametrize(("port", "transport"), [(22, "tcp"), (80, "tcp"), (3389, "tcp"), (1900, "udp"), (0, "udp")])
def test_ports_that_are_never_mapped(port: int, transport: str) -> None:
    assert Table().refuses(request(port, transport=transport)) == "inside_port"


def test_what_the_operator_limits() -> None:
    table = Table(per_client=2, inside_ports=(2000, 3000), lifetime=(120, 7200), permanent=1000)
    assert table.refuses(request(3001)) == "inside_port"
    for port in (2000, 2001):
        table.grant(request(port))
    assert table.refuses(request(2002)) == "quota"
    table.grant(request(2001, holder="natpmp", credential=""))  # another hold is no other mapping
    table.grant(request(2002, client=OTHER))
    granted = [table.granted(request(lifetime=seconds)) for seconds in (1, 600, 10**6)]
    assert granted == [120, 600, 7200]
    assert [table.granted(request(holder="upnp", lifetime=s)) for s in (0, 5, 10**6)] == [1000, 5, 1000]


def test_one_number_for_both_transports() -> None:
    table = Table()
    table.grant(request(suggested_port=7000))
    assert table.suggestion(request(transport="tcp")) == 7000
    assert table.suggestion(request(5001)) == 5001
    assert table.is_companions(request(client=OTHER, transport="tcp"), Endpoint(PUBLIC, 7000))
    assert not table.is_companions(request(transport="tcp"), Endpoint(PUBLIC, 7000))


def test_time_ends_holds() -> None:
    table = Table()
    table.grant(request(lifetime=120), 0.0)
    table.grant(request(holder="natpmp", credential="", lifetime=240), 0.0)
    assert [hold.holder for hold in table.expire(119.9)] == []
    assert [hold.holder for hold in table.expire(120.0)] == ["pcp"]
    assert [hold.holder for hold in table.expire(240.0)] == ["natpmp"]
    assert table.events[-1] == ("closed", "expiry")


def test_filters() -> None:
    table = Table()
    table.grant(request(filters=("198.51.100.0/24",)))
    table.grant(request())  # nothing is said of them
    [mapping] = table.of_client(CLIENT)
    assert mapping.holds["pcp"].filters == ("198.51.100.0/24",)
    table.grant(request(filters=()))
    assert len(table.of_client(CLIENT)[0].holds["pcp"].filters) == 0
    assert table.refuses(request(filters=tuple(f"198.51.{i}.0/24" for i in range(9)))) == "filters"
    assert table.refuses(request(filters=("2001:db8::/32",))) == "filters"


def test_another_public_address() -> None:
    table = Table()
    table.grant(request())
    [mapping] = table.of_client(CLIENT)
    table.moved(mapping, Endpoint("203.0.113.9", 5000), "address")
    table.address_changed()
    assert mapping.public.host == "203.0.113.9"
    assert table.events[-2:] == [("moved", "address"), ("address", "address")]


def test_what_the_broker_has_lost() -> None:
    table = Table()
    table.grant(request())
    [mapping] = table
    hold = mapping.holds["pcp"]
    table.drop(mapping, hold, "kick")
    assert (len(table), table.events[-1]) == (0, ("closed", "kick"))
    table.drop(mapping, hold, "kick")  # it is gone already
    assert table.events.count(("closed", "kick")) == 1


def test_descriptions_are_cleaned() -> None:
    assert clean("a game\x00\x1b[31m\n" + "x" * 500) == ("a game[31m" + "x" * 500)[:256]


HOLDERS = st.sampled_from(["pcp", "natpmp", "upnp"])
DOINGS = st.lists(
    st.tuples(
        st.sampled_from(["map", "unmap", "expire", "drop"]),
        st.sampled_from([CLIENT, OTHER]),
        st.integers(5000, 5002),
        HOLDERS,
        st.integers(1, 20),
    ),
    max_size=40,
)


@given(DOINGS)
def test_whatever_is_done_it_agrees_with_itself(doings: list[tuple[str, str, int, HolderName, int]]) -> None:
    table, now = Table(per_client=2, lifetime=(1, 20)), 0.0
    for what, client, port, holder, seconds in doings:
        again = request(port, client=client, holder=holder, credential="", lifetime=seconds)
        try:
            if what == "map":
                table.grant(again, now)
            elif what == "unmap":
                table.release(again.key, holder)
            elif what == "drop":
                for mapping in table:
                    for hold in list(mapping.holds.values()):
                        if hold.lease == f"lease{seconds}":
                            table.drop(mapping, hold, "kick")
            else:
                now += seconds
                table.expire(now)
        except Refusal:
            pass
        every = list(table)
        assert len(every) == len(table) == sum(len(table.of_client(each)) for each in (CLIENT, OTHER))
        assert all(mapping.holds and mapping.expires > now for mapping in every if what == "expire")
        assert all(len(table.of_client(each)) <= 2 for each in (CLIENT, OTHER))
    opened = [what for what, _ in table.events if what == "opened"]
    closed = [what for what, _ in table.events if what == "closed"]
    assert len(opened) - len(closed) == len(table)

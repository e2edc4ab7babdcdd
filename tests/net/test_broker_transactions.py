"""Many changes in one transaction: the kernel takes several elements in one message and does not say which of them it
refuses, and still each change is carried out or refused by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.broker.elements import ONCE, Element, pack_key
from gateway.broker.netfilter import TOGETHER, Change, Netfilter
from gateway.broker.netlink import sequence_of
from tests.lab import namespaces
from tests.lab.namespaces import within

pytestmark = pytest.mark.net

PLAIN = ("in4", "out4", "many4", "once4")


@pytest.fixture(scope="module")
def table() -> Iterator[Netfilter]:
    namespace = f"{namespaces.new_prefix()}transactions"
    namespaces.add(namespace)
    try:
        with within(namespace):
            netfilter = Netfilter("algate")
            netfilter.load()
        yield netfilter
    finally:
        namespaces.remove(namespace)


def element(name: str, number: int) -> Element:
    data = b"\xc0\xa8\x38\x0a" + bytes((16, 0, 0, 0)) if name == "many4" else None
    return Element(name, pack_key(Endpoint("192.0.2.1", number), "udp", "198.51.100.1"), data, 60.0, "")


def present(table: Netfilter) -> set[tuple[str, bytes]]:
    return {(found.set, found.key) for found in table.elements(PLAIN)}


def expected(had: set[tuple[str, bytes]], changes: Sequence[Change]) -> tuple[set[tuple[str, bytes]], set[int]]:
    """What is there afterwards, and which changes are refused: those that add what is there already. What a refused
    change deletes stays, so that changes before it may be refused by that as well."""
    refused: set[int] = set()
    while True:
        there, more = set(had), set()
        for index, change in enumerate(changes):
            if index in refused:
                continue
            there -= {(each.set, each.key) for each in change.delete}
            for each in change.add:
                if (each.set, each.key) in there:
                    more.add(index)
                there.add((each.set, each.key))
        if not more:
            return there, refused
        refused |= more


ELEMENTS = st.builds(element, st.sampled_from(PLAIN), st.integers(1, 6))
UNIQUE = st.lists(ELEMENTS, max_size=6, unique_by=lambda each: (each.set, each.key)).map(tuple)
CHANGES = st.lists(st.builds(Change, delete=UNIQUE, add=UNIQUE), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_each_change_is_carried_out_or_refused_by_itself(table: Netfilter, rounds: list[list[Change]]) -> None:
    table.apply([Change(delete=tuple(Element(*key, None, 0.0, "") for key in present(table)))])
    there: set[tuple[str, bytes]] = set()
    for changes in rounds:
        there, refused = expected(there, changes)
        assert set(table.apply(changes)) == refused
        assert present(table) == there


@pytest.mark.parametrize("absent", [0, 1, TOGETHER, 2 * TOGETHER])
def test_more_than_a_message_holds(table: Netfilter, absent: int) -> None:
    """Far more elements of one set than one message holds, of which one is there or gone already."""
    table.apply([Change(delete=tuple(Element(*key, None, 0.0, "") for key in present(table)))])
    many = tuple(element("in4", number) for number in range(1, 2 * TOGETHER + 10))
    assert table.apply([Change(add=many[:absent]), Change(add=many[absent:])]) == {}
    assert len(present(table)) == len(many)
    assert set(table.apply([Change(add=(element("out4", 1),)), Change(add=(many[absent],))])) == {1}
    assert table.apply([Change(delete=(many[absent],))]) == {}
    assert table.apply([Change(delete=many)]) == {}
    assert present(table) == {("out4", element("out4", 1).key)}


def test_what_packets_use_up_costs_the_others_nothing(table: Netfilter) -> None:
    """An element of `once` that is gone, as after each transfer, is one error and one more transaction."""
    begun = (element(ONCE[0], 1), element("in4", 1), element("in4", 2))
    table.apply([Change(delete=begun)])
    table.apply([Change(add=begun[1:])])
    before = sent_by(table)
    assert table.apply([Change(delete=begun)]) == {}
    assert sent_by(table) - before == 1 + (1 + 2 + 1) + (1 + 1 + 1)  # each begins and ends with a message


def sent_by(table: Netfilter) -> int:
    """The number of messages that were made so far, this one included."""
    return sequence_of(table._netlink.message(0, 0, b""))

"""Messages between workers and broker, and leases as elements of the kernel's table."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.broker.elements import Element, admitting, elements_of, leases_of
from gateway.lease.messages import (
    MAX_PACKET,
    MOST_MESSAGES,
    Close,
    FromWorker,
    Hello,
    LeaseOpened,
    Open,
    RequestRefused,
    ToWorker,
    decode_from_worker,
    decode_to_worker,
    encode,
    packets,
)
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable
from gateway.model.requests import Lease
from tests.unit.broker.test_validate import (
    ANYBODY,
    CONVERSATION,
    EXCHANGE_PAIR,
    GRE,
    INBOUND,
    INBOUND6,
    LOCAL,
    LOCAL_UDP,
    MAPPING,
    OUTBOUND,
)

UNIX = 1_700_000_000.0


def leases() -> list[Lease]:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099)))
    rng = random.Random(7)
    return [
        table.open(request, now=0.0, unix=UNIX, rng=rng, is_free=lambda port: True)
        for request in (INBOUND, OUTBOUND, INBOUND6, msgspec.structs.replace(CONVERSATION, ttl=60.0), LOCAL, LOCAL_UDP)
    ]


@pytest.mark.parametrize("message", [Hello(4711), Open(2**62, INBOUND), Open(0, OUTBOUND), Close("0123456789abcdef")])
def test_messages_of_workers_survive(message: FromWorker) -> None:
    assert decode_from_worker(encode(message, message)) == [message, message]


@pytest.mark.parametrize(
    "message", [LeaseOpened(5, leases()[0]), RequestRefused(6, "quota", "192.168.56.10 holds 64 pinholes")]
)
def test_messages_of_the_broker_survive(message: ToWorker) -> None:
    assert decode_to_worker(encode(message, message)) == [message, message]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "flush"},
        {"type": "hello"},
        {"type": "hello", "pid": "4711"},
        {"type": "hello", "pid": 1, "slot": 3},
        {"type": "close", "lease": 5},
        {"type": "opened", "id": 1, "lease": None},
        [Close("0" * 16)],
        {"type": "open", "id": 1, "request": {**msgspec.to_builtins(INBOUND), "transport": "icmp"}},
        {"type": "open", "id": 1, "request": {**msgspec.to_builtins(INBOUND), "target": {"host": "x"}}},
    ],
)
def test_anything_else_is_no_message(message: object) -> None:
    with pytest.raises(ValueError, match="bad packet"):
        decode_from_worker(msgspec.msgpack.encode([message]))


def test_a_packet_is_a_list_of_messages_and_not_a_long_one() -> None:
    assert decode_from_worker(encode()) == []
    for packet in (Close("0" * 16), [Close("0" * 16)] * (MOST_MESSAGES + 1)):
        with pytest.raises(ValueError, match="bad packet"):
            decode_from_worker(msgspec.msgpack.encode(packet))


@given(st.lists(st.integers(0, 4000), max_size=200))
def test_many_messages_go_in_few_packets(sizes: list[int]) -> None:
    messages: list[ToWorker] = [RequestRefused(number, "quota", "x" * size) for number, size in enumerate(sizes)]
    parts = list(packets(messages))
    assert [message for data, _ in parts for message in decode_to_worker(data)] == messages
    assert [message for _, inside in parts for message in inside] == messages
    assert len(parts) <= 1 + 2 * (len(messages) // MOST_MESSAGES + sum(sizes) // 4000)


def test_a_long_message_is_refused_at_both_ends() -> None:
    long = Open(1, msgspec.structs.replace(INBOUND, flow="x" * MAX_PACKET))
    with pytest.raises(ValueError, match="packet"):
        encode(long)
    with pytest.raises(ValueError, match="longer"):
        decode_from_worker(msgspec.msgpack.encode([long]))


@given(st.binary(max_size=200) | st.binary(max_size=20).map(lambda tail: encode(Open(1, INBOUND))[:-20] + tail))
def test_no_bytes_raise_anything_but_value_error(data: bytes) -> None:
    try:
        decode_from_worker(data)
    except ValueError:
        pass


def test_leases_survive_the_kernel() -> None:
    elements = [element for slot, lease in enumerate(leases()) for element in elements_of(lease, slot, 60.0)]
    assert [(found.lease, found.slot, found.used) for found in leases_of(elements, UNIX)] == [
        (lease, slot, False) for slot, lease in enumerate(leases())
    ]


@pytest.mark.parametrize("public_host", [GRE.public_host, None])
@pytest.mark.parametrize("second", [None, 0, 40])
def test_leases_of_every_kind_survive_the_kernel(public_host: str | None, second: int | None) -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099)))
    other = msgspec.structs.replace(GRE, client="192.168.56.11", target=Endpoint("192.168.56.11", GRE.target.port))
    mapping = msgspec.structs.replace(MAPPING, peers=("198.51.100.0/24",), target=Endpoint("192.168.56.10", 5000))
    calls = [msgspec.structs.replace(call, public_host=public_host, second=second) for call in (GRE, other)]
    opened = [
        table.open(request, now=0.0, unix=UNIX, rng=random.Random(7 + at), is_free=lambda port: True)
        for at, request in enumerate((MAPPING, mapping, ANYBODY, EXCHANGE_PAIR, *calls))
    ]
    opened = [msgspec.structs.replace(lease, expires=UNIX + 60.0) for lease in opened]
    elements = [element for slot, lease in enumerate(opened) for element in elements_of(lease, slot, 60.0)]
    found = {found.slot: found for found in leases_of(elements, UNIX)}
    assert [found[slot].lease for slot in sorted(found)] == opened
    assert not any(lease.used for lease in found.values())


@pytest.mark.parametrize("public_host", [CONVERSATION.public_host, None])
@pytest.mark.parametrize("second", [None, CONVERSATION.second])
def test_what_lets_peers_in_is_a_part_of_a_conversation(public_host: str | None, second: int | None) -> None:
    few, many = ("203.0.113.5",), ("203.0.113.5", "203.0.113.6", "203.0.113.7")
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099)))
    request = msgspec.structs.replace(CONVERSATION, public_host=public_host, second=second, peers=few)
    lease = table.open(request, now=0.0, unix=UNIX, rng=random.Random(7), is_free=lambda port: True)
    before = elements_of(lease, 1, 60.0)
    after = elements_of(msgspec.structs.replace(lease, peers=many), 1, 60.0)
    assert set(admitting(lease, many[1:], 60.0)) == set(after) - set(before)
    assert admitting(lease, (), 60.0) == ()


def test_without_its_once_element_a_lease_is_used() -> None:
    elements = elements_of(leases()[0], 0, 60.0)[:1]
    assert [found.used for found in leases_of(elements, UNIX)] == [True]


def test_keys_are_packed_as_the_kernel_has_them() -> None:
    dnat, once = elements_of(leases()[0], 0, 60.0)
    public = leases()[0].public
    assert (
        dnat.key
        == once.key
        == bytes([203, 0, 113, 1, 6, 0, 0, 0]) + public.port.to_bytes(2, "big") + bytes([0, 0, 203, 0, 113, 5])
    )
    assert dnat.data == bytes([192, 168, 56, 10, 0xC3, 0x50, 0, 0])
    assert len(elements_of(leases()[2], 0, 60.0)[0].key) == 40


def test_the_longest_lease_fits_into_a_comment_and_a_longer_one_is_an_error() -> None:
    lease = msgspec.structs.replace(leases()[0], flow="f" * 32, reason="r" * 24)
    elements_of(lease, 9999, 60.0)
    with pytest.raises(ValueError, match="127"):
        elements_of(msgspec.structs.replace(lease, flow="f" * 90), 9999, 60.0)


@given(st.text(max_size=40) | st.text(max_size=20).map("algate 1 ".__add__), st.binary(max_size=42), st.binary())
def test_foreign_elements_are_left_out(comment: str, key: bytes, data: bytes) -> None:
    assert leases_of([Element("once4", key, None, 1.0, comment)], UNIX) == [] or len(key) == 16
    mixed = [Element("dnat6", b"", data, 1.0, comment), *elements_of(leases()[0], 0, 60.0)]
    assert [found.lease.id for found in leases_of(mixed, UNIX)] == [leases()[0].id]


def test_endpoint_text_is_kept() -> None:
    assert decode_to_worker(encode(LeaseOpened(1, leases()[2]))) == [LeaseOpened(1, leases()[2])]
    assert leases()[2].target == Endpoint("fd00:56::10", 50000)

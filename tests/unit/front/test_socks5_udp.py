"""Datagrams of UDP ASSOCIATE: what the codec reads, and the reassembly of fragments as RFC 1928 section 7 says."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint, canonical
from alg.socks.socks5 import SocksError
from alg.socks.udp import (
    MAX_DATA,
    REASSEMBLY_TIMEOUT,
    Header,
    Reassembly,
    encode_header,
    header_size,
    parse_header,
)

ports = st.integers(0, 65535)
fragments = st.integers(0, 255)
END = 0x80


@given(ip=st.ip_addresses(), port=ports, fragment=fragments, data=st.binary(max_size=50))
def test_a_header_with_an_address(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, fragment: int, data: bytes
) -> None:
    encoded = encode_header(Endpoint.of(ip, port))
    wire = encoded[:2] + bytes([fragment]) + encoded[3:] + data
    assert parse_header(wire) == (Header(fragment, str(canonical(ip)), port), len(wire) - len(data))


@given(name=st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True), port=ports, data=st.binary(max_size=50))
def test_a_header_with_a_name(name: str, port: int, data: bytes) -> None:
    wire = b"\0\0\0\3" + bytes([len(name)]) + name.encode() + port.to_bytes(2, "big") + data
    assert parse_header(wire) == (Header(0, name, port), len(wire) - len(data))


@given(st.binary(max_size=300))
def test_any_bytes(datagram: bytes) -> None:
    """Either a header that lies within the datagram, or an error; and nothing that is cut off is a header."""
    size = header_size(datagram)
    assert header_size(memoryview(datagram)) == size <= len(datagram)
    try:
        header, end = parse_header(datagram)
    except SocksError:
        return
    assert end == size > 0
    assert 0 <= header.port <= 65535
    for cut in range(end):
        with pytest.raises(SocksError):
            parse_header(datagram[:cut])


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\0\0\0\1", b"\0\0\0\2" + bytes(30), b"\1\0\0\1" + bytes(20), b"\0\0\0\3\0" + bytes(2), b"\0\0\0\3\1 ab"],
)
def test_what_is_dropped(datagram: bytes) -> None:
    with pytest.raises(SocksError):
        parse_header(datagram)


# --- fragments -------------------------------------------------------------------------------------------------------


def feed(queue: Reassembly, *parts: tuple[int, bytes], now: float = 0.0, host: str = "192.0.2.1") -> list[bytes | None]:
    return [queue.add(Header(fragment, host, 53), data, now) for fragment, data in parts]


@given(parts=st.lists(st.binary(max_size=20), min_size=1, max_size=127))
def test_what_is_sent_in_order_comes_out_whole(parts: list[bytes]) -> None:
    numbers = [*range(1, len(parts)), len(parts) | END]
    queue = Reassembly()
    for _ in range(2):  # and the queue is empty behind it
        assert feed(queue, *zip(numbers, parts, strict=True)) == [None] * (len(parts) - 1) + [b"".join(parts)]


def test_a_standalone_datagram_passes_and_abandons_the_queue() -> None:
    queue = Reassembly()
    assert feed(queue, (1, b"a"), (0, b"whole"), (2 | END, b"b")) == [None, b"whole", None]


def test_a_lower_position_abandons_the_queue() -> None:
    queue = Reassembly()
    assert feed(queue, (1, b"a"), (2, b"b"), (1, b"c"), (2 | END, b"d")) == [None, None, None, b"cd"]


def test_a_gap_abandons_the_queue() -> None:
    assert feed(Reassembly(), (1, b"a"), (3 | END, b"c"), (2 | END, b"b")) == [None, None, None]


def test_what_begins_in_the_middle_is_nothing() -> None:
    assert feed(Reassembly(), (2, b"b"), (3 | END, b"c")) == [None, None]
    assert feed(Reassembly(), (END, b"b"), (1 | END, b"one")) == [None, b"one"]


def test_a_doubled_fragment_counts_once() -> None:
    assert feed(Reassembly(), (1, b"a"), (1, b"a"), (2 | END, b"b")) == [None, None, b"ab"]


def test_the_fragments_of_two_targets_are_not_mixed() -> None:
    queue = Reassembly()
    feed(queue, (1, b"a"))
    assert feed(queue, (2 | END, b"b"), host="192.0.2.2") == [None]
    assert feed(queue, (2 | END, b"b")) == [None]


def test_the_timer() -> None:
    """No less than five seconds (RFC 1928 section 7), counted from the first fragment."""
    assert REASSEMBLY_TIMEOUT >= 5
    queue = Reassembly()
    feed(queue, (1, b"a"), now=0)
    assert feed(queue, (2 | END, b"b"), now=4.9) == [b"ab"]
    feed(queue, (1, b"a"), now=10)
    feed(queue, (2, b"b"), now=13)
    assert feed(queue, (3 | END, b"c"), now=15) == [None]


def test_no_more_than_a_datagram_is_held() -> None:
    queue = Reassembly()
    assert feed(queue, (1, bytes(MAX_DATA)), (2, b"x"), (2 | END, b"x")) == [None] * 3


@given(st.lists(st.tuples(fragments, st.binary(max_size=4), st.floats(0, 3)), max_size=200))
def test_whatever_comes_only_whole_sequences_leave(steps: list[tuple[int, bytes, float]]) -> None:
    """Against a model that looks back over all that came: a result is a run 1, 2, ... n|END of the same seconds."""
    queue, now, seen = Reassembly(), 0.0, list[tuple[int, bytes, float]]()
    for fragment, data, pause in steps:
        now += pause
        seen.append((fragment, data, now))
        got = queue.add(Header(fragment, "192.0.2.1", 53), data, now)
        if fragment == 0:
            assert got == data
        elif got is not None:
            assert fragment & END
            # Of doubled ones the last.
            run = [step for i, step in enumerate(seen) if step[:2] not in [next_[:2] for next_ in seen[i + 1 : i + 2]]]
            last = run[-(fragment & ~END) :]
            assert [step[0] & ~END for step in last] == list(range(1, len(last) + 1))
            assert got == b"".join(step[1] for step in last)
            assert now - last[0][2] < REASSEMBLY_TIMEOUT

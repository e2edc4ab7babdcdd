"""Where clients are about to connect: told by one worker, known to all, for a while."""

from __future__ import annotations

import mmap

from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.driver import announced
from gateway.driver.announced import ENTRIES, SIZE, Announced

TARGET = Endpoint("198.51.100.10", 5060)


def test_other_workers_know_it() -> None:
    memory = mmap.mmap(-1, SIZE)
    workers = [Announced(memory, number) for number in (0, 1, 7, announced.REGIONS + 3)]
    for worker in workers:
        assert not worker.has("192.168.56.10", TARGET)
    workers[1].add("192.168.56.10", TARGET, 60)
    workers[2].add("192.168.56.11", Endpoint("2001:db8::1", 21), 60)
    for worker in workers:
        assert worker.has("192.168.56.10", TARGET)
        assert worker.has("192.168.56.11", Endpoint("2001:db8::1", 21))
        assert not worker.has("192.168.56.12", TARGET)  # another client
        assert not worker.has("192.168.56.10", Endpoint("198.51.100.10", 5061))
        assert not worker.has("192.168.56.10", Endpoint("198.51.100.11", 5060))


def test_it_counts_for_a_while() -> None:
    now = [1000.0]
    known = Announced(now=lambda: now[0])
    known.add("a", TARGET, 60)
    now[0] += 59
    assert known.has("a", TARGET)
    now[0] += 2
    assert not known.has("a", TARGET)
    known.add("a", TARGET, 1e9)
    now[0] += announced.LONGEST + 1
    assert not known.has("a", TARGET)


def test_one_worker_overwrites_none_of_another() -> None:
    memory = bytearray(SIZE)
    flooded, other = Announced(memory, 2), Announced(memory, 3)
    other.add("a", TARGET, 60)
    for port in range(10 * ENTRIES):
        flooded.add("b", Endpoint("198.51.100.10", 1024 + port), 60)
    assert other.has("a", TARGET)
    assert flooded.has("b", Endpoint("198.51.100.10", 1024 + 10 * ENTRIES - 1))
    assert not flooded.has("b", Endpoint("198.51.100.10", 1024))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["a", "b"]), st.integers(1, 9), st.floats(0, 100)), max_size=50
    )
)
def test_as_a_list_would(steps: list[tuple[int, str, int, float]]) -> None:
    memory, known, now = bytearray(SIZE), list[tuple[str, int, float]](), 50.0
    for worker, client, port, seconds in steps:
        now += 5
        Announced(memory, worker, lambda: now).add(client, Endpoint("192.0.2.1", port), seconds)  # noqa: B023
        known.append((client, port, now + seconds))
    # Workers that share a region overwrite one another's: then fewer are known, and none that was not announced.
    for client in "ab":
        for port in range(1, 10):
            if Announced(memory, 0, lambda: now).has(client, Endpoint("192.0.2.1", port)):
                assert any((client, port) == entry[:2] and entry[2] > now for entry in known)

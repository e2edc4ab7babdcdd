"""How many bytes a callback splices, by how long the last ones took."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from gateway.net.relay.half import FIRST, LEAST, LONG, MOST, URGENT_COST, URGENT_CREDIT, Half, bulk_after

SECONDS = st.floats(0, 0.1)


@given(st.lists(st.tuples(st.integers(0, MOST), SECONDS)))
def test_it_stays_within_its_bounds(callbacks: list[tuple[int, float]]) -> None:
    bulk = FIRST
    for moved, seconds in callbacks:
        after = bulk_after(bulk, moved, seconds)
        assert LEAST <= after <= MOST
        assert after <= bulk or (moved >= bulk and seconds < LONG), "only more where all was used, and quickly"
        assert after >= bulk or seconds > LONG
        bulk = after


def test_slow_bytes_become_few_and_quick_ones_many() -> None:
    bulk = MOST
    for _ in range(4):
        bulk = bulk_after(bulk, bulk, 2 * LONG)
    assert bulk == LEAST
    for _ in range(4):
        bulk = bulk_after(bulk, bulk, LONG / 10)
    assert bulk == MOST


def test_urgent_bytes_that_cost_much_slow_their_stream_down_and_few_do_not() -> None:
    one, other = socket.socketpair()
    with one, other:
        half = Half(one, other, None)
        assert all(half.charge_urgent(100.0) <= 100.0 for _ in range(int(URGENT_CREDIT)))
        assert half.charge_urgent(100.0) == 100.0 + URGENT_COST
        assert half.charge_urgent(100.0 + 60) <= 160.0, "a minute later it has its credit again"

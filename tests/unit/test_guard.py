"""Guessers: slower and slower, then banned, in a table that does not grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.front.auth.guard import LONGEST_DELAY, GuessGuard
from gateway.policy.shared_counts import SharedCounts, clear
from tests.unit.policy.test_clients import memory

GUESSER, HONEST = "192.0.2.1", "192.0.2.2"


def guard(limit: int = 4, capacity: int = 100) -> GuessGuard:
    return GuessGuard(limit, window=60, ban=300, capacity=capacity)


def test_a_guesser_waits_ever_longer_and_is_banned() -> None:
    it = guard()
    verdicts = [it.failed(GUESSER, float(now)) for now in range(4)]
    assert [verdict.delay for verdict in verdicts] == [0.25, 0.5, 1, 2]
    assert [verdict.banned for verdict in verdicts] == [False, False, False, True]
    assert it.banned(GUESSER, 3)
    assert it.banned(GUESSER, 302.9)
    assert not it.banned(GUESSER, 303)


def test_another_address_is_not_harmed() -> None:
    it = guard()
    for now in range(10):
        it.failed(GUESSER, now)
    assert not it.banned(HONEST, 10)
    assert it.failed(HONEST, 10).delay == 0.25


def test_time_forgives() -> None:
    it = guard()
    for now in range(3):
        it.failed(GUESSER, now)
    assert it.failed(GUESSER, 61).failures == 1
    for now in range(62, 65):
        it.failed(GUESSER, now)
    assert it.banned(GUESSER, 65)
    assert it.failed(GUESSER, 364).failures == 1  # the ban is over


def test_nobody_is_banned_without_a_limit_but_everybody_waits() -> None:
    it = guard(limit=0)
    assert max(it.failed(GUESSER, 1).delay for _ in range(2000)) == LONGEST_DELAY
    assert not it.banned(GUESSER, 1)


def test_an_ipv6_household_is_one_guesser() -> None:
    it = guard()
    for host in range(4):
        it.failed(f"2001:db8::{host + 1:x}", 0)
    assert it.banned("2001:db8::ffff", 1)
    assert not it.banned("2001:db8:0:1::1", 1)


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1000)), max_size=300))
def test_the_table_is_bounded(events: list[tuple[int, float]]) -> None:
    it = guard(capacity=20)
    for host, now in sorted(events, key=lambda event: event[1]):
        it.failed(f"10.0.{host // 256}.{host % 256}", now)
        assert len(it) <= 20


def test_what_is_over_leaves_the_table() -> None:
    it = guard()
    for host in range(50):
        it.failed(f"10.0.0.{host}", 0)
    it.failed(HONEST, 1000)
    assert len(it) == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 40)), max_size=100))
def test_workers_count_together(failures: list[tuple[int, float]]) -> None:
    """As one would that saw them all: the same count, the same ban, whichever worker is asked."""
    words = memory(3)
    guards = [GuessGuard(5, window=60, ban=60, shared=SharedCounts(words, slot)) for slot in range(3)]
    now, banned_until, tries = 0.0, 0.0, 0
    for worker, pause in failures:
        now += pause
        assert len({guard.banned("192.0.2.1", now) for guard in guards}) == 1
        if guards[worker].banned("192.0.2.1", now):
            assert now < banned_until
            continue
        tries += 1
        if guards[worker].failed("192.0.2.1", now).banned:
            banned_until = now + 60
            assert all(guard.banned("192.0.2.1", now + 59) for guard in guards)
            assert not any(guard.banned("192.0.2.2", now) for guard in guards)


def test_ten_guesses_are_ten_whoever_sees_them() -> None:
    words = memory(3)
    guards = [GuessGuard(10, 600, 600, shared=SharedCounts(words, slot)) for slot in range(3)]
    verdicts = [guards[number % 3].failed("192.0.2.1", number) for number in range(10)]
    assert [verdict.failures for verdict in verdicts] == list(range(1, 11))
    assert [verdict.banned for verdict in verdicts] == [False] * 9 + [True]
    clear(words, 0)
    clear(words, 1)
    guards[0] = GuessGuard(10, 600, 600, shared=SharedCounts(words, 0))
    guards[1] = GuessGuard(10, 600, 600, shared=SharedCounts(words, 1))
    assert all(guard.banned("192.0.2.1", 10) for guard in guards)  # a worker that dies forgives nothing
    assert guards[0].failed("192.0.2.1", 11).failures == 11


def test_a_host_inside_does_not_ban_its_lan() -> None:
    """Whose link-layer address is known is one guesser by all its addresses, and nobody else is."""
    hosts = {"fd00::1": "link 02", "fd00::2": "link 02", "fd00::3": "link 03"}
    guard = GuessGuard(3, 600, 600, identify=lambda address: hosts.get(address, address))
    for address in ("fd00::1", "fd00::2", "fd00::1"):
        guard.failed(address, 0)
    assert guard.banned("fd00::2", 1)
    assert not guard.banned("fd00::3", 1)
    assert not guard.banned("fd00::4", 1)

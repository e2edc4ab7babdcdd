"""Checking passwords: real hashes in real threads beside a real event loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import gevent
import pytest

from gateway.front.auth.passwords import MAX_WAITING, Accounts, Overloaded, PasswordChecker
from gateway.policy.users import HASHER, User

ANN = User("ann", HASHER.hash("secret"), ("staff",))
CLIENT = "192.0.2.1"


def checker(banned: Callable[[str], bool] = lambda _: False) -> PasswordChecker:
    users = {"ann": ANN, "eve": User("eve", "*")}
    return PasswordChecker(Accounts(users), banned)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"ann", b"wrong"),
        (b"ann", b""),
        (b"ann", b"secret\0"),
        (b"Ann", b"secret"),
        (b"", b""),
        (b"bob", b"secret"),
        (b"\xff", b"secret"),
        (b"eve", b"*"),  # has no password
        (b"eve", b""),
    ],
)
def test_what_is_wrong_stays_wrong(name: bytes, password: bytes) -> None:
    it = checker()
    assert it.check(b"ann", b"secret", CLIENT) == ANN
    assert it.check(name, password, CLIENT) is None
    assert it.check(name, password, CLIENT) is None
    assert it.pending == 0


def test_only_a_success_is_remembered_and_only_with_its_hash() -> None:
    accounts = Accounts({"ann": ANN})
    it = PasswordChecker(accounts, lambda _: False)
    first = timed(lambda: it.check(b"ann", b"secret", CLIENT))
    assert min(timed(lambda: it.check(b"ann", b"secret", CLIENT)) for _ in range(5)) < first / 5
    wrong = timed(lambda: it.check(b"ann", b"wrong", CLIENT))
    assert min(timed(lambda: it.check(b"ann", b"wrong", CLIENT)) for _ in range(5)) > wrong / 5
    accounts.users = {"ann": User("ann", HASHER.hash("new"))}
    assert it.check(b"ann", b"secret", CLIENT) is None
    assert it.check(b"ann", b"new", CLIENT) is not None
    accounts.users = {}
    assert it.check(b"ann", b"new", CLIENT) is None


def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    """Interleaved, and by the median, so that a busy machine slows down both."""
    it = checker()
    for attempt in range(3):
        known, unknown, none = [], [], []
        for i in range(25):
            guess = b"guess %d %d" % (attempt, i)
            known.append(timed(partial(it.check, b"ann", guess, CLIENT)))
            unknown.append(timed(partial(it.check, b"bob", guess, CLIENT)))
            none.append(timed(partial(it.check, b"eve", guess, CLIENT)))
        medians = [statistics.median(times) for times in (known, unknown, none)]
        if max(medians) < 1.25 * min(medians):
            return
    pytest.fail(f"medians differ: {medians}")


def test_many_connections_with_the_same_password_cost_one_hash() -> None:
    it = checker()
    alone = timed(lambda: it.check(b"ann", b"wrong", CLIENT))
    asking = [gevent.spawn(it.check, b"ann", b"secret", CLIENT) for _ in range(200)]
    took = timed(lambda: gevent.joinall(asking))
    assert [greenlet.get() for greenlet in asking] == [ANN] * 200
    assert took < 20 * alone
    assert it.pending == 0


def test_a_guesser_with_many_connections_does_not_keep_others_waiting() -> None:
    it = checker()
    guessing = [gevent.spawn(it.check, b"ann", b"%d" % i, CLIENT) for i in range(100)]
    gevent.sleep(0)
    assert it.check(b"ann", b"secret", "192.0.2.2") == ANN
    assert sum(greenlet.dead for greenlet in guessing) < 20
    gevent.joinall(guessing)
    assert it.pending == 0


def test_the_event_loop_goes_on_meanwhile() -> None:
    it = checker()
    rounds = 0

    def count() -> None:
        nonlocal rounds
        while True:
            gevent.sleep(0.001)
            rounds += 1

    counting = gevent.spawn(count)
    gevent.joinall([gevent.spawn(it.check, b"ann", b"%d" % i, f"192.0.2.{i}") for i in range(20)])
    counting.kill()
    assert rounds > 20


def test_a_banned_address_costs_no_hash_even_if_it_waited_already() -> None:
    banned: set[str] = set()
    it = checker(banned.__contains__)
    guessing = [gevent.spawn(it.check, b"ann", b"%d" % i, CLIENT) for i in range(100)]
    gevent.sleep(0)
    banned.add(CLIENT)
    alone = timed(lambda: it.check(b"ann", b"x", "192.0.2.2"))
    assert timed(lambda: gevent.joinall(guessing)) < 10 * alone


def test_no_more_wait_than_there_is_room_for() -> None:
    banned: set[str] = set()
    it = checker(banned.__contains__)
    waiting = [gevent.spawn(it.check, b"ann", b"%d" % i, CLIENT) for i in range(MAX_WAITING)]
    gevent.sleep(0)
    with pytest.raises(Overloaded):
        it.check(b"ann", b"secret", "192.0.2.2")
    banned.add(CLIENT)
    gevent.joinall(waiting)
    assert it.check(b"ann", b"secret", "192.0.2.2") == ANN


def test_who_gives_up_leaves_nothing_behind() -> None:
    it = checker()
    asking = [gevent.spawn(it.check, b"ann", b"%d" % i, f"192.0.2.{i % 5}") for i in range(20)]
    gevent.sleep(0.001)
    gevent.killall(asking)
    deadline = time.monotonic() + 10
    while it.pending:
        assert time.monotonic() < deadline
        gevent.sleep(0.01)
    assert it.check(b"ann", b"secret", CLIENT) == ANN
